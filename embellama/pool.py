"""One loaded model and its threads.

   any thread                           │ threads of the model, each with a context of its own
                                        │
   Pool.submit(Job) ──► Scheduler ═════════► inbox ──► EmbeddingModel.encode
      │ a future                        │                  │
      ▼                                 │                  ▼
   rows of the job ◄───────────────────── Scheduler.complete

Nothing waits here that no caller is waiting for, so the library's waiting room has no limit of its own.
"""

import atexit
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from embellama.batch import Batch, Rows, Tokens
from embellama.config import EngineConfig
from embellama.errors import EmbeddingFailed, InputError, Unavailable
from embellama.gguf.weights import Weights
from embellama.jobs import Gathering, Job, Jobs
from embellama.model import EmbeddingModel
from embellama.scheduler import Assignment, Limits, Scheduler
from embellama.tuning import tuned

logger = logging.getLogger("embellama.pool")

_thread = threading.local()  # has `serves` on the threads of models

# Called with the texts done so far and all of them.
Progress = Callable[[int, int], None]


def check_may_wait() -> None:
    """Raise `InputError` on a model's own thread, which would wait for itself."""
    if hasattr(_thread, "serves"):
        raise InputError("a progress callback cannot use the engine: it runs on a thread that the engine waits for")


class Unloading(Unavailable):
    """The model is being unloaded; it may be loaded again."""


class Pool:
    """A model's weights, its threads, and the scheduler between callers and threads.

    Attributes:
        config: The model's, with `max_batch_tokens` filled in.
        jobs: Makes what `submit` takes.
        weights: The model's.
    """

    def __init__(self, config: EngineConfig):
        """Load the model of `config`, already checked, and start its threads."""
        self._pid = os.getpid()
        self.weights = Weights(config)
        self.config = config = tuned(config, self.weights)
        self.jobs = Jobs(config, self.weights)
        self._changed = threading.Condition()  # guards everything below; notified when requests go
        self._scheduler = Scheduler(Limits.of(config))
        self._requests: dict[int, _Request] = {}
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

    def submit(self, job: Job[Any], progress: Progress | None = None) -> "Future[Rows]":
        """Compute a job's texts; cancelling the future drops what is still queued.

        Returns:
            A future of the rows that `job.finish` takes. It may fail with `EmbeddingFailed`.

        Raises:
            Unloading: The model is being unloaded.
            Unavailable: Python is ending, or this process is a fork of the one that loaded the model.
        """
        if os.getpid() != self._pid:
            name = self.config.model_name
            raise Unavailable(f"model {name!r} was loaded in process {self._pid} and its threads do not follow a fork")
        request = _Request(job, self.weights.dim, progress)
        if not job.tokens:
            request.future.set_result(request.gathering.rows)
            return request.future
        with self._changed:
            if self._abandoned:
                raise Unavailable("Python is ending, and the models' threads have stopped")
            if self._closing:
                raise Unloading(f"model {self.config.model_name!r} is being unloaded")
            id = self._scheduler.submit([len(t) for t in job.tokens])
            self._requests[id] = request
            self._hand_out()
        request.future.add_done_callback(lambda future: self._cancel(id) if future.cancelled() else None)
        return request.future

    def close(self) -> None:
        """Wait for every answer, then stop the threads. The weights go with the last user of this pool."""
        if os.getpid() != self._pid:
            return  # a fork has none of the threads
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._requests)
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
            self._scheduler.cancel(id)
            self._requests.pop(id, None)
            self._changed.notify_all()

    def _hand_out(self) -> None:
        if self._abandoned:
            return
        for assignment in self._scheduler.assign():
            jobs = [self._requests[text.request].gathering.job for text in assignment.texts]
            tokens = [job.tokens[text.position] for job, text in zip(jobs, assignment.texts, strict=True)]
            per_token = [job.per_token for job in jobs]
            self._inboxes[assignment.worker].put(_Task(assignment, tokens, per_token))

    def _run(self, worker: int, started: "Future[None]") -> None:
        _thread.serves = self.config.model_name
        try:
            model = EmbeddingModel(self.config, self.weights)
        except BaseException as error:
            started.set_exception(error)
            return
        with model:
            with self._changed:
                self._scheduler.worker_ready(worker)
            started.set_result(None)
            while task := self._inboxes[worker].get():
                try:
                    batch = Batch.join(task.tokens, task.per_token)
                    rows = model.encode(batch, task.assignment.n_threads)
                except Exception as error:  # whatever it is, it must reach the caller
                    self._fail(task.assignment, error)
                else:
                    self._answer(task.assignment, batch, rows)

    def _answer(self, assignment: Assignment, batch: Batch, rows: Rows) -> None:
        ends = np.cumsum(batch.n_rows)
        with self._changed:
            answer = self._scheduler.complete(assignment.batch, assignment.worker)
            touched = {}
            for i, text in answer.rows:
                request = touched[text.request] = self._requests[text.request]
                request.gathering.put(text.position, rows[ends[i - 1] if i else 0 : ends[i]])
            for id in answer.finished:
                del self._requests[id]
            self._hand_out()
            self._changed.notify_all()
        for id, request in touched.items():
            request.tell()
            if id in answer.finished and request.future.set_running_or_notify_cancel():
                request.future.set_result(request.gathering.rows)

    def _fail(self, assignment: Assignment, error: Exception) -> None:
        with self._changed:
            failures = self._scheduler.fail(assignment.batch, assignment.worker)
            failed = [(self._requests.pop(request), position) for request, position in failures]
            self._hand_out()
            self._changed.notify_all()
        reason = error.reason if isinstance(error, EmbeddingFailed) else str(error)
        for request, position in failed:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(request.gathering.job.blame(EmbeddingFailed(position, reason)))


class _Task(NamedTuple):
    assignment: Assignment
    tokens: Sequence[Tokens]
    per_token: Sequence[bool]


class _Request:
    def __init__(self, job: Job[Any], dim: int, progress: Progress | None):
        self.gathering = Gathering(job, dim)
        self.future: Future[Rows] = Future()
        self._progress = progress
        self._telling = threading.Lock()  # one job at a time, and none after the last
        self._n_told = 0

    def tell(self) -> None:
        n_done = self.gathering.n_done
        with self._telling:
            if self._progress and self._n_told < n_done:
                self._n_told = n_done
                try:
                    self._progress(n_done, len(self.gathering.job.tokens))
                except BaseException:  # even SystemExit: it would end the thread, and nobody would be answered
                    logger.exception("a progress callback failed; it is not called again")
                    self._progress = None
