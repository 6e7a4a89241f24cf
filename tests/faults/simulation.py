"""A pool whose clock and worker processes are simulated: the dispatcher and its supervisor are the real ones.

test ── submit, restart_all ──► Dispatcher ── Supervisor ── send, stop, kill ──► SimulatedProcess
test ── load, work, die, … ────────────────────────────────────────────────────►      │
                                   ◄────────────── on_reply, on_close ────────────────┘
"""

import asyncio
import selectors
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from embellama_server.config import ServerConfig
from embellama_server.workers.channel import CANARY, STARTED, WorkerReply
from embellama_server.workers.dispatcher import Dispatcher

from embellama.backend import ANYONE, Caller
from embellama.batch import Batch, Rows, Tokens
from embellama.kernels import SharedWeights

DIM = 4
KILLS, FAILS, HANGS = 1001, 1002, 1003  # tokens of texts that end a worker, that it cannot compute, that it is lost in

T = TypeVar("T")


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing: its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.errors: list[dict[str, Any]] = []  # raised where nobody was to catch them
        super().__init__(_Jump(self))
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: SimulatedLoop):
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for ever"
        self._loop.now += max(timeout, 0)
        return []


def row_of(text: Tokens) -> Rows:
    """Return the vector of a text, ``(DIM,) float32``: another one for every text."""
    seed = np.random.default_rng(np.frombuffer(text.tobytes(), np.uint8))
    return seed.normal(size=DIM).astype(np.float32)


class SimulatedProcess:
    """A worker process that does what the test says, when it says so."""

    def __init__(self, pool: "Pool", on_reply: Callable[[WorkerReply], None], on_close: Callable[[], None]):
        self._pool, self._on_reply, self._on_close = pool, on_reply, on_close
        self._gone = asyncio.Event()
        self.tasks: deque[tuple[int, Batch | None]] = deque([(STARTED, Batch.join([pool.canary]))])
        self.memory = self.resident = 0
        self.loaded = self.killed = self.hangs = self.drifted = False
        pool.processes.append(self)

    @property
    def pid(self) -> int:
        return 0

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()

    def send(self, id: int, n_threads: int, batch: Batch) -> None:
        assert self.alive
        self.tasks.append((id, batch))
        assert sum(id > 0 for id, _ in self.tasks) <= 2, "a worker holds more than two batches"

    def stop(self) -> None:
        assert self.alive
        self.tasks.append((0, None))

    def kill(self) -> None:
        """The operating system takes a moment, in which answers may still come."""
        if not self.killed:
            self.killed = True
            asyncio.get_running_loop().call_later(0.01, self.die)

    async def end(self) -> None:
        try:
            await asyncio.wait_for(self._gone.wait(), 5)
        except TimeoutError:
            self.kill()
            await self._gone.wait()

    def die(self) -> None:
        if self.alive:
            self._gone.set()
            if self.tasks and (batch := self.tasks[0][1]):
                for text in np.split(batch.tokens, np.cumsum(batch.lengths)[:-1]):
                    self._pool.n_deaths[text.tobytes()] += 1
            self._pool.processes.remove(self)
            self._on_close()

    def work(self, n_answers: int = 1) -> None:
        """Do the next task; with several answers, say the same more than once."""
        if self.hangs or not self.tasks or not self.alive:
            return
        id, batch = self.tasks[0]
        if batch is None or np.isin(KILLS, batch.tokens):
            self.die()
        elif np.isin(HANGS, batch.tokens):
            self.hangs = True
        else:
            self.tasks.popleft()
            self.loaded = True
            self.drifted |= self._pool.drifting and id == CANARY
            for _ in range(n_answers):
                self._on_reply(self._answer(id, batch))

    def _answer(self, id: int, batch: Batch) -> WorkerReply:
        if id == STARTED and self._pool.load_error:
            return WorkerReply(id, None, self._pool.load_error)
        if np.isin(FAILS, batch.tokens):
            return WorkerReply(id, None, "it failed")
        parts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        rows = np.array([row_of(part) for part in parts])
        if id == STARTED and self._pool.other_model:
            return WorkerReply(id, np.ones((1, 3), np.float32), "")
        return WorkerReply(id, -rows if self.drifted else rows, "")


class Pool:
    """A dispatcher over simulated processes."""

    def __init__(self, **settings: Any) -> None:
        values = {"num_workers": 3, "max_batch_tokens": 100, "max_batch_size": 8, "worker_timeout_ms": 1000}
        self.config = ServerConfig(model_path="m.gguf", **{**values, **settings}).checked()
        self.loop = SimulatedLoop()
        self.canary = np.arange(10, dtype=np.int32)
        self.processes: list[SimulatedProcess] = []  # those alive, oldest first
        self.n_launched = 0
        self.n_deaths: Counter[bytes] = Counter()  # of processes, by the texts they were at
        self.load_error = ""
        self.other_model = self.drifting = self.no_process = self.dies_on_load = False
        self.dispatcher = Dispatcher(self.config, DIM, self.canary, self._launch)
        self.failed = self.call(self.dispatcher.start)

    def _launch(
        self,
        shared: SharedWeights,
        number: int,
        on_reply: Callable[[WorkerReply], None],
        on_close: Callable[[], None],
    ) -> SimulatedProcess:
        if self.no_process:
            raise OSError(11, "Resource temporarily unavailable")
        self.n_launched += 1
        process = SimulatedProcess(self, on_reply, on_close)
        if self.dies_on_load:
            process.kill()
        return process

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the event loop and let what it started happen."""

        async def run() -> T:
            result = function()
            for _ in range(5):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(run())

    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def work(self, seconds: float, every: float = 0.01) -> None:
        """For so long, every process does a batch, or whatever else it has to do, each so many seconds."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            for process in list(self.processes):
                self.call(process.work)
            self.wait(every)

    def submit(self, texts: list[Tokens], patience: float = 1000.0, caller: Caller = ANYONE) -> "asyncio.Future[Rows]":
        return self.call(lambda: self.dispatcher.submit(texts, deadline=self.loop.now + patience, caller=caller))

    def worker_states(self) -> list[str]:
        """How far each worker is in its life, as the supervisor sees it."""
        return [worker.state for worker in self.dispatcher._supervisor._workers.values()]

    def restart_workers(self) -> None:
        """As SIGHUP does."""
        self.call(lambda: self.loop.create_task(self.dispatcher.restart_workers()))

    def heal(self) -> None:
        """Nothing ails the machine any more."""
        self.load_error = ""
        self.other_model = self.drifting = self.no_process = self.dies_on_load = False
        for process in self.processes:
            process.memory = 0

    def close(self) -> None:
        """Stop it; nobody may be left."""
        try:
            self.loop.run_until_complete(self.dispatcher.close())
            assert not self.processes
            assert not self.loop.errors
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
                self.loop.run_until_complete(asyncio.wait([task]))
            if self.failed.done():
                self.failed.exception()
            self.loop.close()
