"""`Pool`: compute with one model on threads of this process, each with a context of its own.

   any thread                              │ threads of the pool
                                           │
   Pool.submit ──► Ledger, Scheduler ════════► inbox ──► EmbeddingModel.encode
      │ a future                           │                  │
      ▼                                    │                  ▼
   rows of the request ◄──────────────────────── Ledger.put

Nothing waits here that no caller is waiting for, so the library's waiting room has no limit of its own.
"""

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from embellama.backend import ANYONE, Caller, PoolState, Progress, Times
from embellama.batch import Batch, RowKind, Rows, Tokens
from embellama.config import EngineConfig
from embellama.errors import EmbeddingFailed, InputError, Unavailable
from embellama.gguf.weights import Weights
from embellama.ledger import Ledger, OpenRequest
from embellama.model import EmbeddingModel
from embellama.scheduler import Assignment, Limits, Scheduler

logger = logging.getLogger("embellama.pool")

_thread = threading.local()  # has `serves` on the threads of pools

Request = OpenRequest["Future[Rows]"]


def check_may_wait() -> None:
    """Raise `InputError` on a pool's own thread, which would wait for itself."""
    if hasattr(_thread, "serves"):
        raise InputError("a progress callback cannot use the engine: it runs on a thread that the engine waits for")


class Unloading(Unavailable):
    """The model is being unloaded; it may be loaded again."""


class Pool:
    """A `Backend` of threads that share one model's weights."""

    def __init__(self, config: EngineConfig, weights: Weights):
        """Start the threads for a checked and tuned `config`, and wait until each has its context."""
        self._pid = os.getpid()
        self._config = config
        self._weights = weights
        self._changed = threading.Condition()  # guards everything below; notified when requests go
        self._scheduler = Scheduler(Limits.of(config))
        self._ledger: Ledger[Future[Rows]] = Ledger(self._scheduler, weights.dim, Future)
        self._closing = False
        self._abandoned = False
        self._inboxes = [queue.SimpleQueue[_Task | None]() for _ in range(config.num_workers)]
        started: list[Future[None]] = [Future() for _ in self._inboxes]
        self._threads = [
            threading.Thread(target=self._run, args=(worker, future), name=f"{config.model_name}-{worker}", daemon=True)
            for worker, future in enumerate(started)
        ]
        atexit.register(self._abandon)
        try:
            for thread in self._threads:
                thread.start()
            for future in started:
                future.result()
        except BaseException:  # also when interrupted, or when the system has no more threads to give
            self._stop()
            raise

    @property
    def state(self) -> PoolState:
        """The pool's current state."""
        with self._changed:
            return PoolState(
                status="unavailable" if self._closing else "ok",
                n_workers=len(self._threads),
                n_ready=0 if self._closing else len(self._threads),
                n_open=len(self._ledger),
                n_waiting=self._scheduler.n_waiting,
                waiting_tokens=self._scheduler.waiting_tokens,
            )

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise `Unloading` or `Unavailable` if nothing can be computed any more."""
        name = self._config.model_name
        if os.getpid() != self._pid:  # asked without the lock, which the fork may have taken along
            raise Unavailable(f"model {name!r} was loaded in process {self._pid} and its threads do not follow a fork")
        if self._abandoned:
            raise Unavailable("Python is ending, and the models' threads have stopped")
        if self._closing:
            raise Unloading(f"model {name!r} is being unloaded")

    def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        kind: RowKind = RowKind.TEXT,
        deadline: float = float("inf"),
        times: Times | None = None,
        progress: Progress | None = None,
        caller: Caller = ANYONE,
    ) -> "Future[Rows]":
        """Compute the rows of texts, as `Backend.submit` says.

        Raises:
            Unloading: The model is being unloaded.
            Unavailable: Python is ending, or this process is a fork of the one that loaded the model.
        """
        self.check_room(caller)
        with self._changed:
            self.check_room(caller)
            request = self._ledger.open(
                tokens, kind=kind, deadline=deadline, times=times, progress=progress, caller=caller
            )
            late = self._assign_batches()
        self._settle([request, *late])
        # A callback that held the request would be held by it, rows and all, until Python looks for circles.
        id = request.id
        request.future.add_done_callback(lambda future: self._cancel(id) if future.cancelled() else None)
        return request.future

    def wait_idle(self) -> None:
        """Wait until no thread computes, also what nobody waits for any more: batches of a request that failed."""
        with self._changed:
            self._changed.wait_for(lambda: not any(map(self._scheduler.n_held, self._scheduler.workers)))

    def close(self) -> None:
        """Wait until no request is open, then stop the threads. The weights are freed with their last user."""
        if os.getpid() != self._pid:
            return  # a fork has none of the threads
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: self._abandoned or not len(self._ledger))
        self._stop()

    def _abandon(self) -> None:
        """Stop at interpreter exit, once the running batches are done: a thread inside llama.cpp would crash it."""
        if os.getpid() != self._pid:
            return  # a fork has none of the threads
        with self._changed:
            self._closing = self._abandoned = True
        self._stop()

    def _stop(self) -> None:
        atexit.unregister(self._abandon)
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def _cancel(self, id: int) -> None:
        with self._changed:
            self._ledger.cancel(id)
            self._changed.notify_all()

    def _assign_batches(self) -> list[Request]:
        """Give batches to free threads; return the requests whose deadline has passed, to be settled.

        Requests only wait while threads compute, so looking for those when a batch ends is often enough.
        """
        if self._abandoned:
            return []
        late = self._ledger.expire(time.monotonic())
        for assignment in self._scheduler.assign():
            self._inboxes[assignment.worker].put(_Task(assignment, *self._ledger.texts(assignment)))
        return late

    def _run(self, worker: int, started: "Future[None]") -> None:
        _thread.serves = self._config.model_name
        try:
            model = EmbeddingModel(self._config, self._weights)
        except BaseException as error:
            started.set_exception(error)
            return
        with model:
            with self._changed:
                self._scheduler.worker_ready(worker)
            started.set_result(None)
            while task := self._inboxes[worker].get():
                try:
                    batch = Batch.join(task.tokens, task.kinds)
                    rows = model.encode(batch, task.assignment.n_threads)
                except Exception as error:  # whatever it is, it must reach the caller
                    self._on_error(task.assignment, error)
                else:
                    self._on_rows(task.assignment, batch, rows)

    def _on_rows(self, assignment: Assignment, batch: Batch, rows: Rows) -> None:
        with self._changed:
            result = self._scheduler.complete(assignment.batch, assignment.worker)
            touched = self._ledger.put(result, batch, rows)
            late = self._assign_batches()
            self._changed.notify_all()
        self._settle([*touched, *late])

    def _on_error(self, assignment: Assignment, error: Exception) -> None:
        reason = error.reason if isinstance(error, EmbeddingFailed) else str(error)
        with self._changed:
            failed = self._ledger.fail(self._scheduler.fail(assignment.batch, assignment.worker), reason)
            late = self._assign_batches()
            self._changed.notify_all()
        self._settle([*failed, *late])

    def _settle(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.settle()


class _Task(NamedTuple):
    """A batch for a thread, with its texts as `Batch.join` takes them."""

    assignment: Assignment
    tokens: list[Tokens]
    kinds: list[RowKind]
