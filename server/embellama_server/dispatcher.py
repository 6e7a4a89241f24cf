"""Move requests from the event loop to worker processes and rows back.

      event loop                                      |   worker process 1..n
                                                      |
  submit ──► Scheduler (waiting room, bounded)        |
                │ pump: batches for free hands        |
                ▼                                     |
             Channel.send ════════════════════════════|══► worker.run
                                                      |      │
  future ◄── _on_reply ◄══════════════════════════════|══════┘
             _on_close: what it held goes to another, |
                        and it is started again       |

submit       token ids in, a future out; raises Overloaded when the waiting room is full.
_pump        after every event: hands out what the scheduler says.
_on_reply    rows into their requests; a request with every row is answered, all or nothing.
_on_close    a worker is gone: replay, restart after a pause that grows while it keeps dying.
_tick        deadlines.

Everything runs on the event loop's thread, so there are no locks.
"""

import asyncio
import logging
import multiprocessing
import signal
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Batch, Tokens
from embellama.errors import DeadlineExceeded, EmbeddingFailed, ModelLoadError, Unavailable
from embellama.scheduler import Failure, Limits, Scheduler
from embellama_server import worker as worker_process
from embellama_server.channel import STARTED, Channel, Reply
from embellama_server.config import ServerConfig

logger = logging.getLogger("embellama.dispatcher")

Rows = NDArray[np.float32]

# One batch running, one waiting in the worker's queue: it never idles on a message, and no more is lost with it.
N_SLOTS = 2

# A deadline is noticed this late at most. Smaller wakes an idle server more often.
TICK_S = 0.05

# A worker that lived this long died of something new: the pause before its restart starts small again.
SETTLED_S = 30.0
RESTART_PAUSE_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)

# A worker's canary must point where the first worker's did. Thread counts and restarts change the last bits only.
CANARY_COSINE = 0.9999

# After being told to stop, a worker has this long for the batch it is in.
STOP_S = 5.0


class _Request:
    def __init__(self, tokens: Sequence[Tokens], dim: int, future: "asyncio.Future[Rows]"):
        self.tokens = tokens
        self.rows = np.empty((len(tokens), dim), np.float32)
        self.future = future


class _Worker:
    """One place in the pool; processes come and go in it."""

    def __init__(self, number: int):
        self.number = number
        self.channel: Channel | None = None
        self.process: multiprocessing.process.BaseProcess | None = None
        self.started_at = 0.0
        self.n_deaths = 0  # in a row
        self.restart: asyncio.Task[None] | None = None


class Dispatcher:
    """The pool of worker processes, and the scheduler between it and the requests.

    Attributes:
        n_ready: Workers that have loaded and reproduced the canary.
    """

    def __init__(self, config: ServerConfig, dim: int, canary: Tokens):
        """Prepare a pool for `config`, already checked; `canary` is what every worker must embed alike."""
        self._config = config
        self._dim = dim
        self._canary = canary
        self._canary_row: Rows | None = None
        self._context = multiprocessing.get_context("spawn")
        self._scheduler = Scheduler(Limits.of(config, n_slots=N_SLOTS, max_waiting=config.queue_size))
        self._requests: dict[int, _Request] = {}
        self._workers = [_Worker(number) for number in range(config.num_workers)]
        self._ticker: asyncio.TimerHandle | None = None
        self._was_whole = False
        self._closing = False

    @property
    def n_ready(self) -> int:
        return len(self._scheduler.workers)

    @property
    def n_workers(self) -> int:
        """Workers asked for."""
        return len(self._workers)

    @property
    def status(self) -> Literal["starting", "ok", "degraded", "unavailable"]:
        """How the pool is: not yet whole, whole, with fewer workers than asked for, or with none."""
        if self.n_ready == self.n_workers:
            return "ok"
        if not self._was_whole:
            return "starting"
        return "degraded" if self.n_ready else "unavailable"

    def start(self) -> "asyncio.Future[None]":
        """Start the worker processes, in the running event loop; `n_ready` tells when they have loaded.

        Returns:
            A future that fails with `ModelLoadError` if the model turns out not to load in a worker.
        """
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        for worker in self._workers:
            self._start(worker)
        self._tick()
        return self._failed

    def check_room(self) -> None:
        """Raise what `submit` would raise now."""
        if self._closing:
            raise Unavailable("the server is shutting down")
        if not self.n_ready:
            raise Unavailable("no worker is ready")
        self._scheduler.check_room()

    def submit(self, tokens: Sequence[Tokens], deadline: float) -> "asyncio.Future[Rows]":
        """Compute texts; cancelling the future drops what is still queued.

        Args:
            tokens: Token ids of each text, ``(n,) int32``; at least one text.
            deadline: When the future fails with `DeadlineExceeded`, on the event loop's clock.

        Returns:
            A future of ``(n_texts, dim) float32``, rows in the order given.

        Raises:
            Unavailable: No worker is ready, or the pool is closing.
            Overloaded: The waiting room is full.
        """
        self.check_room()
        id = self._scheduler.submit([len(t) for t in tokens], deadline)
        request = self._requests[id] = _Request(tokens, self._dim, self._loop.create_future())
        request.future.add_done_callback(lambda future: self._cancel(id) if future.cancelled() else None)
        self._pump()
        return request.future

    async def close(self) -> None:
        """Stop every worker and wait until none is left. Requests not yet answered fail with `Unavailable`."""
        self._closing = True
        if self._ticker:
            self._ticker.cancel()
        for id in list(self._requests):
            self._fail(id, Unavailable("the server is shutting down"))
        for worker in self._workers:
            if worker.restart:
                worker.restart.cancel()
            if worker.channel:
                worker.channel.stop()
        await asyncio.gather(*(asyncio.to_thread(_reap, worker.process) for worker in self._workers))

    def _pump(self) -> None:
        for assignment in self._scheduler.assign():
            texts = [self._requests[text.request].tokens[text.position] for text in assignment.texts]
            channel = self._workers[assignment.worker].channel
            assert channel is not None
            channel.send(assignment.batch, assignment.n_threads, Batch.join(texts))

    def _on_reply(self, worker: _Worker, reply: Reply) -> None:
        if reply.id == STARTED:
            self._on_started(worker, reply)
        elif reply.rows is None:
            logger.warning("worker %d failed on a batch: %s", worker.number, reply.error)
            self._fail_requests(self._scheduler.fail(reply.id, worker.number), reply.error)
        else:
            answer = self._scheduler.complete(reply.id, worker.number)
            self._pump()  # first: the worker is waiting
            for row, text in answer.rows:
                self._requests[text.request].rows[text.position] = reply.rows[row]
            for id in answer.finished:
                request = self._requests.pop(id)
                if not request.future.done():
                    request.future.set_result(request.rows)
            return
        self._pump()

    def _on_started(self, worker: _Worker, reply: Reply) -> None:
        if reply.rows is None:
            self._refuse(worker, reply.error)
            return
        if self._canary_row is None:
            self._canary_row = reply.rows[0]
        cosine = float(self._canary_row @ reply.rows[0]) / float(
            np.linalg.norm(self._canary_row) * np.linalg.norm(reply.rows[0])
        )
        if cosine < CANARY_COSINE:
            self._refuse(worker, f"its canary has cosine {cosine:.5f} to the first worker's")
            return
        self._scheduler.worker_ready(worker.number)
        self._was_whole = self._was_whole or self.n_ready == self.n_workers
        logger.info("worker %d ready in %.1f s", worker.number, time.monotonic() - worker.started_at)

    def _refuse(self, worker: _Worker, reason: str) -> None:
        """Leave a worker out of service. If none ever served, the model itself is at fault."""
        logger.error("worker %d cannot serve: %s", worker.number, reason)
        if self._canary_row is None and not self._failed.done():
            self._failed.set_exception(ModelLoadError(self._config.model_path, reason))
        if worker.process:
            worker.process.kill()

    def _on_close(self, worker: _Worker) -> None:
        process, worker.process, worker.channel = worker.process, None, None
        failures = self._scheduler.worker_lost(worker.number)
        self._fail_requests(failures, "a worker process died on it")
        if self._closing:
            return
        worker.n_deaths = 1 if time.monotonic() - worker.started_at > SETTLED_S else worker.n_deaths + 1
        pause = RESTART_PAUSE_S[min(worker.n_deaths, len(RESTART_PAUSE_S)) - 1]
        logger.error("worker %d died; starting it again in %.1f s", worker.number, pause)
        worker.restart = self._loop.create_task(self._restart(worker, process, pause))
        self._pump()

    async def _restart(self, worker: _Worker, dead: multiprocessing.process.BaseProcess | None, pause: float) -> None:
        await asyncio.to_thread(_reap, dead)
        while True:
            await asyncio.sleep(pause)
            try:
                return self._start(worker)
            except OSError as error:  # no process or no memory to be had just now
                pause = RESTART_PAUSE_S[-1]
                logger.error("worker %d cannot be started: %s; trying again in %.1f s", worker.number, error, pause)

    def _start(self, worker: _Worker) -> None:
        channel = Channel(self._context)
        process = self._context.Process(
            target=worker_process.run,
            args=(self._config, self._canary, *channel.worker_end),
            name=f"worker-{worker.number}",
        )
        # Not in a thread: it takes a few ms, and nothing can come between it and the next line. The worker inherits
        # the mask, so that Ctrl-C does not reach it before it can say that it ignores it (`worker.run`).
        signal.pthread_sigmask(signal.SIG_BLOCK, worker_process.IGNORED)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, worker_process.IGNORED)
        worker.process, worker.channel, worker.started_at = process, channel, time.monotonic()
        channel.open(lambda reply: self._on_reply(worker, reply), lambda: self._on_close(worker))

    def _tick(self) -> None:
        for id in self._scheduler.expired(self._loop.time()):
            self._fail(id, DeadlineExceeded(self._config.timeout_ms))
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _fail_requests(self, failures: Sequence[Failure], reason: str) -> None:
        for request, position in failures:
            self._fail(request, EmbeddingFailed(position, reason))

    def _fail(self, id: int, error: Exception) -> None:
        self._scheduler.cancel(id)
        request = self._requests.pop(id, None)
        if request and not request.future.done():
            request.future.set_exception(error)

    def _cancel(self, id: int) -> None:
        self._scheduler.cancel(id)
        self._requests.pop(id, None)


def _reap(process: multiprocessing.process.BaseProcess | None) -> None:
    """Wait for a process that was told to stop or has died; kill it if it does not go."""
    if process is None:
        return
    process.join(STOP_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
