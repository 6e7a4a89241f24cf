"""Start worker processes, watch them, and replace those that die, hang, give wrong rows or grow too large.

        ┌──────────────── pause, growing while they die without having served ───────────────┐
        ▼                                                                                    │
      start ──► loads, answers its canary ──► ready ──► serves ──► died, hung, drifted ──► lost
                                                │
                           replaced (SIGHUP, too much memory): its successor starts; once that is ready, the old
                           worker gets no more batches, finishes those it holds, and stops

One `Supervisor` tells a `Listener` (the dispatcher) what becomes of its workers. A worker is known by a number that is
never used again. Everything runs on the event loop's thread.

record.py    what is known of one worker, and when it has been silent for too long
places.py    busy time and memory, by the places that workers take
canary.py    the row that every worker must reproduce
rate.py      how fast batches were computed lately
restarts.py  how long to wait before the next start
"""

import asyncio
import functools
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

from embellama.backend import WorkerState
from embellama.batch import Batch, Rows, Tokens
from embellama.errors import ModelLoadError
from embellama.kernels import SharedWeights
from embellama_server.config import ServerConfig
from embellama_server.workers.canary import Canary
from embellama_server.workers.channel import CANARY, STARTED, WorkerReply
from embellama_server.workers.places import Places
from embellama_server.workers.process import Launch, Process, WorkerProcess
from embellama_server.workers.rate import RecentRate
from embellama_server.workers.record import HeldBatch, WorkerRecord
from embellama_server.workers.restarts import RESTART_PAUSE_S, Restarts

logger = logging.getLogger("embellama.supervisor")

# How often deadlines and hangs are looked for. Smaller wakes an idle server more often.
TICK_S = 0.05

# A worker computes its canary again after so long.
CANARY_S = 30.0

# How often the memory of workers is looked at.
MEMORY_S = 1.0


class Listener(Protocol):
    """The object that a supervisor tells what becomes of its workers: the dispatcher."""

    def on_ready(self, worker: int) -> None:
        """A worker may be given batches."""

    def on_rows(self, worker: int, batch: int, texts: Batch, rows: Rows) -> None:
        """A worker has computed a batch; `texts` is the batch as it was sent."""

    def on_error(self, worker: int, batch: int, reason: str) -> None:
        """A worker could not compute a batch, but is still alive."""

    def on_retired(self, worker: int) -> int:
        """A worker is to get no more batches; return how many it still holds."""

    def on_lost(self, worker: int, suspect: bool) -> None:
        """A worker is gone with the batches it held; `suspect` tells whether the one it was computing may be why."""


class Supervisor:
    """Keeps as many worker processes serving as the config asks for.

    Attributes:
        trouble: Why workers cannot serve, or "".
    """

    def __init__(self, config: ServerConfig, canary: Tokens, listener: Listener, launch: Launch | None = None):
        """Prepare for a checked `config`; `canary` is what all workers must embed alike; `launch` starts a worker."""
        self._config = config
        self._launch = launch or functools.partial(WorkerProcess, config, canary)
        self._shared = SharedWeights()
        self._canary = Canary(canary, scores=config.pooling == "rank")
        self._listener = listener
        self._workers: dict[int, WorkerRecord] = {}
        self._number = 0
        self._places = Places()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._memory_at = 0.0
        self._rate = RecentRate()
        self._restarts = Restarts()
        self._closing = False
        self._restarting = asyncio.Lock()
        self._restart_waits = False
        self.trouble = ""

    @property
    def n_ready(self) -> int:
        """Workers that may be given batches."""
        return sum(worker.state == "ready" for worker in self._workers.values())

    @property
    def rate(self) -> float:
        """Tokens a second that one worker computes when it has enough to do, by what it did lately; 0 when unknown."""
        return self._rate.possible_tokens_a_s

    @property
    def n_restarts(self) -> int:
        """Workers that died and were started again."""
        return self._restarts.n

    @property
    def recovering(self) -> bool:
        """Whether workers served before, and those that are being started now can be expected to serve too."""
        return self._canary.is_known and not self.trouble and not self._closing

    @property
    def states(self) -> list[WorkerState]:
        """The use of each place; while a worker is being replaced, its successor has a place too."""
        return self._places.states(self._workers.values(), self._loop.time() if self._workers else 0.0)

    def start(self) -> "asyncio.Future[None]":
        """Start the workers, in the running event loop.

        Returns:
            A future that fails with `ModelLoadError` if the model turns out not to load in a worker.
        """
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        for _ in range(self._config.num_workers):
            self._start()
        self._tick()
        return self._failed

    def send(self, worker: int, batch: int, n_threads: int, texts: Batch, n_possible: int) -> None:
        """Give a worker a batch; with enough to do, it would have had `n_possible` tokens."""
        receiver = self._workers[worker]
        receiver.held.append(HeldBatch(batch, texts, n_possible, self._loop.time()))
        receiver.process.send(batch, n_threads, texts)

    async def restart_all(self) -> None:
        """Replace every worker, one after another, once it has loaded; each serves until its successor does.

        Asked again meanwhile, it does so once more at the end, however often it was asked.
        """
        if self._restart_waits:
            return
        self._restart_waits = True
        async with self._restarting:
            self._restart_waits = False
            self._shared = SharedWeights()  # the file may be another one
            for worker in list(self._workers.values()):
                await worker.settled.wait()  # it may have read an older file
                if worker.state == "ready" and (successor := self._replace(worker, "all are started again")):
                    await successor.settled.wait()

    async def close(self, *, at_once: bool = False) -> None:
        """Stop every worker and wait until none is left; with `at_once`, without waiting for their current batches."""
        self._closing = True
        if self._ticker:
            self._ticker.cancel()
        for task in self._tasks:
            task.cancel()
        processes = [worker.process for worker in self._workers.values()]
        for worker in list(self._workers.values()):
            worker.state = "stopping"
            worker.settled.set()  # nobody need wait for it any more
            worker.process.kill() if at_once else worker.process.stop()
        await asyncio.gather(*(process.end() for process in processes))
        del self._shared  # also where this object is found as garbage later, or never

    def _start(self, n_fruitless: int = 0, replaces: WorkerRecord | None = None) -> WorkerRecord:
        self._number += 1
        place = self._places.take(self._workers.values())
        worker = WorkerRecord(self._number, place, self._loop.time(), n_fruitless, replaces)
        worker.process = self._launch(
            self._shared, worker.number, lambda reply: self._on_reply(worker, reply), lambda: self._on_close(worker)
        )
        self._workers[worker.number] = worker
        return worker

    def _replace(self, worker: WorkerRecord, reason: str) -> WorkerRecord | None:
        """Start a worker's successor unless it has one; return it unless there is no process to be had."""
        if successor := self._successor_of(worker):
            return successor
        logger.info("worker %d is to be replaced: %s", worker.number, reason)
        try:
            successor = self._start(replaces=worker)
        except OSError as error:
            logger.error("no process for the successor of worker %d: %s", worker.number, error)
            worker.put_off_replacement(worker, self._loop.time())
            return None
        successor.put_off_replacement(worker, self._loop.time())
        return successor

    def _successor_of(self, worker: WorkerRecord) -> WorkerRecord | None:
        return next((other for other in self._workers.values() if other.replaces is worker), None)

    def _on_reply(self, worker: WorkerRecord, reply: WorkerReply) -> None:
        if worker.fault:
            return  # after a wrong canary its rows may be wrong too; the batches it held run elsewhere
        now = self._loop.time()
        if reply.id in (STARTED, CANARY):
            worker.canary_sent = False
            self._on_canary(worker, reply)
        elif worker.held and worker.held[0].id == reply.id:
            held = worker.held.popleft()
            worker.n_done += 1
            if reply.rows is None:
                self._listener.on_error(worker.number, reply.id, reply.error)
            else:
                seconds = max(now - max(held.sent_at, worker.heard_at), 1e-6)
                self._places.add_busy(worker.place, seconds)
                self._rate.add(len(held.texts.tokens), held.n_possible, seconds)
                self._listener.on_rows(worker.number, reply.id, held.texts, reply.rows)
        worker.heard_at = now
        if worker.state == "retired" and not worker.held:
            worker.stop(self._loop.time())

    def _on_canary(self, worker: WorkerRecord, reply: WorkerReply) -> None:
        if reply.rows is None:
            self._refuse(worker, reply.error)
            return
        if fault := self._canary.difference(reply.rows[0]):
            self._refuse(worker, fault)
        elif worker.state == "starting":
            self._on_ready(worker)

    def _on_ready(self, worker: WorkerRecord) -> None:
        worker.state = "ready"
        worker.settled.set()
        self.trouble = ""
        logger.info("worker %d ready in %.1f s", worker.number, self._loop.time() - worker.started_at)
        self._listener.on_ready(worker.number)
        old, worker.replaces = worker.replaces, None
        if old and old.state == "ready":
            old.state = "retired"
            if self._listener.on_retired(old.number) == 0:
                old.stop(self._loop.time())

    def _refuse(self, worker: WorkerRecord, reason: str) -> None:
        """Kill a worker that failed its canary. If no worker ever passed it, the model itself is at fault."""
        logger.error("worker %d cannot serve: %s", worker.number, reason)
        if worker.state == "starting":
            self.trouble = reason
        else:  # another one in its place may well serve
            worker.drifted = True
        if not self._canary.is_known and not self._failed.done() and not self._closing:
            self._failed.set_exception(ModelLoadError(self._config.model_path, reason))
        worker.kill(reason)

    def _on_close(self, worker: WorkerRecord) -> None:
        del self._workers[worker.number]
        state, worker.state = worker.state, "gone"
        reason = worker.fault or "its process died"
        self._listener.on_lost(worker.number, suspect=not worker.drifted and not worker.is_at_canary)
        if self._closing:
            return
        worker.settled.set()
        successor = self._successor_of(worker)
        if state in ("retired", "stopping") or successor:
            if successor:
                successor.replaces = None
            self._keep(worker.process.end())
            return
        n_fruitless = 0 if worker.n_done else worker.n_fruitless + 1
        pause, self.trouble = self._restarts.after_death(self._loop.time(), n_fruitless, reason, self.trouble)
        if state == "starting" and (old := worker.replaces) and old.state == "ready":
            logger.error("worker %d, a successor, is gone: %s; worker %d goes on", worker.number, reason, old.number)
            old.put_off_replacement(old, self._loop.time())
            self._keep(worker.process.end())
            return
        logger.error("worker %d is gone: %s; starting another in %.1f s", worker.number, reason, pause)
        self._keep(self._start_again(worker.process, pause, n_fruitless))

    async def _start_again(self, dead: Process, pause: float, n_fruitless: int) -> None:
        reaping = asyncio.create_task(dead.end())
        while True:
            if pause:
                await asyncio.sleep(pause)
            try:
                self._start(n_fruitless)
                break
            except OSError as error:  # no process or no memory to be had just now
                pause = RESTART_PAUSE_S[-1]
                self.trouble = f"no worker can be started: {error}"
                logger.error("%s; trying again in %.1f s", self.trouble, pause)
        await reaping

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        now = self._loop.time()
        for worker in list(self._workers.values()):
            self._check(worker, now)
        if self._config.max_worker_memory and now - self._memory_at >= MEMORY_S:
            self._memory_at = now
            self._check_memory(now)
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _check(self, worker: WorkerRecord, now: float) -> None:
        """Kill a worker that hangs; have one compute its canary again, however busy it is."""
        if worker.fault:
            return
        if worker.state == "ready" and not worker.canary_sent and now - worker.canary_at > CANARY_S:
            worker.canary_sent, worker.canary_at = True, now
            worker.process.send(CANARY, self._config.n_threads_busy, self._canary.batch)
        if reason := worker.overdue(now, self._rate.s_a_token, self._config.worker_timeout_ms / 1000):
            worker.kill(reason)

    def _check_memory(self, now: float) -> None:
        for worker in list(self._workers.values()):
            if worker.state != "ready" or now < worker.replace_at or self._successor_of(worker):
                continue
            used = worker.process.memory
            if used > self._config.max_worker_memory:
                self._replace(worker, f"it uses {used} bytes; max_worker_memory is {self._config.max_worker_memory}")
