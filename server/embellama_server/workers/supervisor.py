"""Keep worker processes alive, honest and on time.

        ┌──────────────── pause, growing while they die without having served ───────────────┐
        ▼                                                                                    │
      start ──► loads, answers its canary ──► ready ──► serves ──► died, hung, drifted ──► lost
                                                │
                           replaced (SIGHUP, too much memory): its successor starts; once that is ready it gets no
                           more, finishes what it holds, and stops

One `Supervisor` tells a `Listener` (the dispatcher) what becomes of its workers. A worker is known by a number that is
never used again. Everything runs on the event loop's thread.
"""

import asyncio
import functools
import itertools
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from embellama.backend import WorkerState
from embellama.batch import Batch, Rows, Tokens
from embellama.errors import ModelLoadError
from embellama_server.config import ServerConfig
from embellama_server.workers.channel import CANARY, STARTED, Reply
from embellama_server.workers.process import STOP_S, Launch, Process, WorkerProcess

logger = logging.getLogger("embellama.supervisor")

# How often deadlines and hangs are looked for. Smaller wakes an idle server more often.
TICK_S = 0.05

# Pauses before a worker is started again, by how many before it died without having computed a batch. One that served
# is replaced at once: whatever ended it, starting again is likely to work.
RESTART_PAUSE_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)

# A worker that has to be replaced for its memory later than this was a long time good; sooner, pauses grow.
LONG_S = 60.0

# More deaths than this within a minute, and none is started for a minute: something is wrong that starting does not
# mend. Of two workers that are killed from outside every other second, 30 die.
MAX_DEATHS_A_MINUTE = 60

# A worker that has not loaded by then is started again. A model of many GB on a slow disk takes minutes.
START_S = 600.0

# Seconds of silence a token excuses, before anything is known of how fast this model is.
UNKNOWN_S_A_TOKEN = 0.5

# How much of a batch's weight is left with each one that follows. Smaller, and requests are refused because the machine
# stood still for a second; larger, and it takes longer to notice a load that is slower.
MEMORY = 0.98

# A worker may take this many times as long for a batch as batches of its size have taken.
PATIENCE = 20.0

# A worker's canary must point where the first worker's did. Thread counts and restarts change the last bits only.
CANARY_COSINE = 0.9999

# A reranker's canary has scores, no direction: they may differ by this much, or by this share of the first worker's.
CANARY_SCORE = 0.02

# A worker computes its canary again after so long.
CANARY_S = 30.0

# How often the memory of workers is looked at.
MEMORY_S = 1.0


class Listener(Protocol):
    """Who is told what becomes of workers."""

    def on_ready(self, worker: int) -> None:
        """A worker may be given batches."""

    def on_rows(self, worker: int, batch: int, texts: Batch, rows: Rows) -> None:
        """A worker has computed a batch, which was these texts."""

    def on_error(self, worker: int, batch: int, reason: str) -> None:
        """A worker could not compute a batch, and lives on."""

    def on_retired(self, worker: int) -> int:
        """A worker is to get no more batches; return how many it still holds."""

    def on_lost(self, worker: int, suspect: bool) -> None:
        """A worker is gone, and what it held with it; `suspect` if the batch it was in may be why."""


class _Held(NamedTuple):
    """A batch that a worker has."""

    batch: int
    texts: Batch
    n_possible: int  # tokens it would have had with enough to do
    sent_at: float


class _Worker:
    """One worker process."""

    process: Process

    def __init__(self, number: int, place: int, now: float):
        self.number = number
        self.place = place  # the lowest that was free
        self.state: Literal["starting", "ready", "retired", "stopping", "gone"] = "starting"
        self.started_at = now
        self.heard_at = now  # when it last answered anything
        self.held: deque[_Held] = deque()
        self.n_done = 0  # batches
        self.n_fruitless = 0  # processes in its place that died in a row without having computed anything
        self.replaces: _Worker | None = None
        self.n_replaced = 0  # workers in its place that in a row were replaced soon
        self.replace_at = now  # not for its memory before then
        self.settled = asyncio.Event()  # it is ready, or gone
        self.canary_at = now  # when it last was asked for its canary
        self.canary_sent = False  # and has not answered yet
        self.stopped_at = 0.0
        self.fault = ""  # why it is being killed
        self.drifted = False


class _Recent:
    """What batches took lately, in sums in which older ones count less and less.

    Sums, and no average of rates: of two replies read at once, the first took long and the second no time.
    """

    def __init__(self) -> None:
        self.n_tokens = self.n_possible = self.seconds = 0.0

    @property
    def s_a_token(self) -> float:
        """Seconds for a token; 0 before anything was computed."""
        return self.seconds / self.n_tokens if self.n_tokens else 0.0

    def add(self, n_tokens: int, n_possible: int, seconds: float) -> None:
        self.n_possible = MEMORY * self.n_possible + n_possible
        self.n_tokens = MEMORY * self.n_tokens + n_tokens
        self.seconds = MEMORY * self.seconds + seconds


class Supervisor:
    """The worker processes."""

    def __init__(self, config: ServerConfig, canary: Tokens, listener: Listener, launch: Launch | None = None):
        """Prepare for a checked `config`; `canary` is what every worker must embed alike; `launch` starts a worker."""
        self._config = config
        self._launch = launch or functools.partial(WorkerProcess, config, canary)
        self._canary = Batch.join([canary])
        self._canary_row: Rows | None = None
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._number = 0
        self._busy_s: list[float] = []  # by places
        self._deaths: deque[float] = deque()  # of the last minute
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._memory_at = 0.0
        self._recent = _Recent()
        self._closing = False
        self._restarting = asyncio.Lock()
        self._restart_waits = False
        self.n_restarts = 0
        self.trouble = ""

    @property
    def n_ready(self) -> int:
        """Workers that may be given batches."""
        return sum(worker.state == "ready" for worker in self._workers.values())

    @property
    def rate(self) -> float:
        """Tokens a second that one worker computes when it has enough to do, by what it did lately; 0 when unknown.

        Batches may have been far from full for lack of work, and a full one need take no longer: a large model takes
        as long for one token as for a hundred. By its tokens alone it would look too slow for any request but the
        smallest, which would then be all that it is given.
        """
        recent = self._recent
        return recent.n_possible / recent.seconds if recent.seconds else 0.0

    @property
    def recovering(self) -> bool:
        """Whether workers that served before are being started again and nothing speaks against it."""
        return self._canary_row is not None and not self.trouble and not self._closing

    @property
    def states(self) -> list[WorkerState]:
        """What was seen at each place; while a worker is being replaced, its successor has a place too."""
        processes = {worker.place: worker.process for worker in self._workers.values()}
        return [
            WorkerState(busy_s, processes[place].memory, processes[place].resident)
            if place in processes
            else WorkerState(busy_s, 0, 0)
            for place, busy_s in enumerate(self._busy_s)
        ]

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
        receiver.held.append(_Held(batch, texts, n_possible, self._loop.time()))
        receiver.process.send(batch, n_threads, texts)

    async def restart_all(self) -> None:
        """Replace every worker, one after another; each serves until its successor does.

        Asked again meanwhile, it does so once more at the end, however often it was asked.
        """
        if self._restart_waits:
            return
        self._restart_waits = True
        async with self._restarting:
            self._restart_waits = False
            for worker in list(self._workers.values()):
                if worker.state == "ready" and (successor := self._replace(worker, "all are started again")):
                    await successor.settled.wait()

    async def close(self, *, at_once: bool = False) -> None:
        """Stop every worker and wait until none is left; with `at_once`, not even for the batches they are in."""
        self._closing = True
        if self._ticker:
            self._ticker.cancel()
        for task in self._tasks:
            task.cancel()
        processes = [worker.process for worker in self._workers.values()]
        for worker in list(self._workers.values()):
            worker.state = "stopping"
            worker.process.kill() if at_once else worker.process.stop()
        await asyncio.gather(*(process.end() for process in processes))

    def _start(self, n_fruitless: int = 0, replaces: _Worker | None = None) -> _Worker:
        self._number += 1
        taken = {worker.place for worker in self._workers.values()}
        place = next(place for place in itertools.count() if place not in taken)
        if place == len(self._busy_s):
            self._busy_s.append(0.0)
        worker = _Worker(self._number, place, self._loop.time())
        worker.n_fruitless, worker.replaces = n_fruitless, replaces
        worker.process = self._launch(
            worker.number, lambda reply: self._on_reply(worker, reply), lambda: self._on_close(worker)
        )
        self._workers[worker.number] = worker
        return worker

    def _replace(self, worker: _Worker, reason: str) -> _Worker | None:
        """Start a worker's successor unless it has one; return it unless there is no process to be had."""
        if successor := self._successor_of(worker):
            return successor
        logger.info("worker %d is to be replaced: %s", worker.number, reason)
        try:
            successor = self._start(replaces=worker)
        except OSError as error:
            logger.error("no process for the successor of worker %d: %s", worker.number, error)
            self._rest(worker, worker)
            return None
        self._rest(worker, successor)
        return successor

    def _rest(self, worker: _Worker, successor: _Worker) -> None:
        """Have pauses grow between workers that are replaced for their memory soon after they started."""
        now = self._loop.time()
        successor.n_replaced = worker.n_replaced + 1 if now - worker.replace_at < LONG_S else 0
        successor.replace_at = now + RESTART_PAUSE_S[min(successor.n_replaced, len(RESTART_PAUSE_S) - 1)]

    def _successor_of(self, worker: _Worker) -> _Worker | None:
        return next((other for other in self._workers.values() if other.replaces is worker), None)

    def _on_reply(self, worker: _Worker, reply: Reply) -> None:
        if worker.fault:
            return  # what it says after its canary was wrong may be wrong too; what it held runs elsewhere
        now = self._loop.time()
        if reply.id in (STARTED, CANARY):
            worker.canary_sent = False
            self._on_canary(worker, reply)
        elif worker.held and worker.held[0].batch == reply.id:
            held = worker.held.popleft()
            worker.n_done += 1
            if reply.rows is None:
                self._listener.on_error(worker.number, reply.id, reply.error)
            else:
                seconds = max(now - max(held.sent_at, worker.heard_at), 1e-6)
                self._busy_s[worker.place] += seconds
                self._recent.add(len(held.texts.tokens), held.n_possible, seconds)
                self._listener.on_rows(worker.number, reply.id, held.texts, reply.rows)
        worker.heard_at = now
        if worker.state == "retired" and not worker.held:
            self._stop(worker)

    def _on_canary(self, worker: _Worker, reply: Reply) -> None:
        if reply.rows is None:
            self._refuse(worker, reply.error)
            return
        if self._canary_row is None:
            self._canary_row = reply.rows[0]
        if fault := _difference(self._canary_row, reply.rows[0], scores=self._config.pooling == "rank"):
            self._refuse(worker, fault)
        elif worker.state == "starting":
            self._on_ready(worker)

    def _on_ready(self, worker: _Worker) -> None:
        worker.state = "ready"
        worker.settled.set()
        self.trouble = ""
        logger.info("worker %d ready in %.1f s", worker.number, self._loop.time() - worker.started_at)
        self._listener.on_ready(worker.number)
        old, worker.replaces = worker.replaces, None
        if old and old.state == "ready":
            old.state = "retired"
            if self._listener.on_retired(old.number) == 0:
                self._stop(old)

    def _refuse(self, worker: _Worker, reason: str) -> None:
        """Leave a worker out of service. If none ever served, the model itself is at fault."""
        logger.error("worker %d cannot serve: %s", worker.number, reason)
        if worker.state == "starting":
            self.trouble = reason
        else:  # another one in its place may well serve
            worker.drifted = True
        if self._canary_row is None and not self._failed.done():
            self._failed.set_exception(ModelLoadError(self._config.model_path, reason))
        self._kill(worker, reason)

    def _stop(self, worker: _Worker) -> None:
        worker.state = "stopping"
        worker.stopped_at = self._loop.time()
        worker.process.stop()

    def _kill(self, worker: _Worker, reason: str) -> None:
        worker.fault = worker.fault or reason
        worker.process.kill()

    def _on_close(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        state, worker.state = worker.state, "gone"
        reason = worker.fault or "its process died"
        at_canary = worker.canary_sent and bool(worker.held) and worker.canary_at <= worker.held[0].sent_at
        self._listener.on_lost(worker.number, suspect=not worker.drifted and not at_canary)
        if self._closing:
            return
        worker.settled.set()
        successor = self._successor_of(worker)
        if state in ("retired", "stopping") or successor:
            if successor:
                successor.replaces = None
            self._keep(worker.process.end())
            return
        now = self._loop.time()
        self._deaths.append(now)
        self.n_restarts += 1
        n_fruitless = 0 if worker.n_done else worker.n_fruitless + 1
        pause = RESTART_PAUSE_S[min(n_fruitless, len(RESTART_PAUSE_S) - 1)]
        while self._deaths[0] < now - 60:
            self._deaths.popleft()
        if len(self._deaths) > MAX_DEATHS_A_MINUTE:
            pause = 60.0
            self.trouble = f"{len(self._deaths)} workers died within a minute, the last because {reason}"
            logger.error("%s; none is started for a minute", self.trouble)
        if n_fruitless > 1 and not self.trouble:
            self.trouble = f"{n_fruitless} workers in a row died before they computed anything, the last: {reason}"
        if state == "starting" and worker.replaces and worker.replaces.state == "ready":
            logger.error(
                "worker %d, a successor, is gone: %s; worker %d goes on", worker.number, reason, worker.replaces.number
            )
            self._rest(worker.replaces, worker.replaces)
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

    def _check(self, worker: _Worker, now: float) -> None:
        """Kill a worker that hangs; have one compute its canary again, however busy it is."""
        if worker.fault:
            return
        if worker.state == "starting":
            if now - worker.started_at > START_S:
                self._kill(worker, f"it has not loaded within {START_S:.0f} s")
            return
        if worker.state == "stopping":
            if now - worker.stopped_at > STOP_S:
                self._kill(worker, f"it has not stopped within {STOP_S:.0f} s")
            return
        if worker.state == "ready" and not worker.canary_sent and now - worker.canary_at > CANARY_S:
            worker.canary_sent, worker.canary_at = True, now
            worker.process.send(CANARY, self._config.n_threads_busy, self._canary)
        if worker.held:
            sent_at = worker.held[0].sent_at
            patience = len(worker.held[0].texts.tokens) * (PATIENCE * self._recent.s_a_token or UNKNOWN_S_A_TOKEN)
        elif worker.canary_sent:
            sent_at, patience = worker.canary_at, 0.0
        else:
            return
        patience += self._config.worker_timeout_ms / 1000
        if now - max(sent_at, worker.heard_at) > patience:
            self._kill(worker, f"it has not answered within {patience:.1f} s")

    def _check_memory(self, now: float) -> None:
        for worker in list(self._workers.values()):
            if worker.state != "ready" or now < worker.replace_at or self._successor_of(worker):
                continue
            used = worker.process.memory
            if used > self._config.max_worker_memory:
                self._replace(worker, f"it uses {used} bytes; max_worker_memory is {self._config.max_worker_memory}")


def _difference(first: Rows, row: Rows, *, scores: bool) -> str:
    """Say how a worker's canary, ``(dim,)``, differs from the first worker's; nothing if it does not."""
    if len(row) != len(first):
        return f"its canary has {len(row)} dimensions, the first worker's {len(first)}"
    if scores:
        agrees = np.allclose(row, first, rtol=CANARY_SCORE, atol=CANARY_SCORE)
        return "" if agrees else f"its canary has scores {row.tolist()}, the first worker's {first.tolist()}"
    cosine = float(first @ row) / float(np.linalg.norm(first) * np.linalg.norm(row))
    return "" if cosine >= CANARY_COSINE else f"its canary has cosine {cosine:.5f} to the first worker's"
