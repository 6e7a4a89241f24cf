"""`Dispatcher`: move requests from the event loop to worker processes, and rows back.

      event loop                                      |   worker process 1..n
                                                      |
  submit ──► Ledger, Scheduler (bounded)              |
                │ pump: batches for free workers      |
                ▼                                     |
             Supervisor.send ══ Channel ══════════════|══► worker.run
                                                      |      │
  future ◄── on_rows ◄════════════════════════════════|══════┘
             on_lost: its batches go to another one   |

submit      token ids in, a future of rows out; refuses a request that cannot wait or would be late.
_pump       after every event: sends the batches that the scheduler assigns; background ones as `BackgroundTurns` says.
on_rows     rows into their requests; a request with every row is answered, all or nothing.
on_lost     a worker is gone: its batches run again, and a text that killed workers is remembered.

Everything runs on the event loop's thread, so there are no locks.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence

from embellama.backend import ANYONE, Caller, PoolState, PoolStatus, Progress, Times
from embellama.batch import Batch, RowKind, Rows, Tokens
from embellama.errors import EmbeddingFailed, InputError, Overloaded, Unavailable
from embellama.ledger import Ledger, OpenRequest
from embellama.scheduler import Limits, Scheduler
from embellama_server.config import ServerConfig
from embellama_server.workers.process import Launch
from embellama_server.workers.supervisor import TICK_S, Supervisor
from embellama_server.workers.turns import BackgroundTurns

logger = logging.getLogger("embellama.dispatcher")

# One batch running, one waiting in the worker's pipe: it never idles on a message, and no more is lost with it.
N_SLOTS = 2

# A text that killed workers is refused for so long, and so many of them are remembered.
BLOCKED_S = 600.0
MAX_BLOCKED = 10_000

# A request is taken if its estimated wait is at most this share of the time it has: the pool's rate drifts, and work on
# what then comes too late is work lost; and shorter requests that come later may pass a long one.
CAUTION = 0.7

# The longest a refused client is asked to wait. With more to do than that, another server is the better advice.
MAX_RETRY_AFTER_S = 60.0


OnBatch = Callable[[int, int], None]


class TooManyForDeadline(InputError):
    """More tokens in one request than all workers could compute in the time it has, with nothing else to do."""

    param = "input"

    def __init__(self, n_tokens: int, limit: int, timeout_ms: int):
        super().__init__(n_tokens, limit, timeout_ms)
        self.n_tokens, self.limit, self.timeout_ms = n_tokens, limit, timeout_ms

    def __str__(self) -> str:
        return (
            f"the request has {self.n_tokens} tokens; about {self.limit} can be computed here within timeout_ms, "
            f"which is {self.timeout_ms}"
        )


class Dispatcher:
    """A `Backend` that computes in a pool of worker processes."""

    def __init__(
        self,
        config: ServerConfig,
        dim: int,
        canary: Tokens,
        launch: Launch | None = None,
        on_batch: OnBatch = lambda n_texts, n_tokens: None,
    ):
        """Prepare a pool for `config`, already checked.

        Args:
            dim: Length of a row.
            canary: Token ids of a text that every worker must embed alike.
            launch: Starts a worker; by default a real process.
            on_batch: Called after each batch with its numbers of texts and tokens.
        """
        self._on_batch = on_batch
        self._config = config
        self._supervisor = Supervisor(config, canary, self, launch)
        limits = Limits.of(
            config, n_slots=N_SLOTS, max_waiting=config.queue_size, max_waiting_tokens=config.queue_tokens
        )
        self._scheduler = Scheduler(limits)
        self._ledger: Ledger[asyncio.Future[Rows]] = Ledger(self._scheduler, dim, lambda: self._loop.create_future())
        self._turns = BackgroundTurns()
        self._blocked: dict[bytes, float] = {}  # texts that killed workers, until when
        self._ticker: asyncio.TimerHandle | None = None
        self._was_whole = False
        self._closing = False
        self._closed = asyncio.Event()

    @property
    def n_workers(self) -> int:
        """Workers asked for."""
        return self._config.num_workers

    @property
    def n_ready(self) -> int:
        """Workers that have loaded and reproduced the canary."""
        return self._supervisor.n_ready

    @property
    def state(self) -> PoolState:
        """The pool's current state."""
        return PoolState(
            status=self._status(),
            n_workers=self.n_workers,
            n_ready=self.n_ready,
            n_restarts=self._supervisor.n_restarts,
            workers=tuple(self._supervisor.states),
            n_open=len(self._ledger),
            n_waiting=self._scheduler.n_waiting,
            waiting_tokens=self._scheduler.waiting_tokens,
            rate=self._rate(),
            trouble=self._supervisor.trouble,
        )

    def start(self) -> "asyncio.Future[None]":
        """Start the worker processes, in the running event loop; `n_ready` tells when they have loaded.

        Returns:
            A future that fails with `ModelLoadError` if the model turns out not to load in a worker.
        """
        self._loop = asyncio.get_running_loop()
        failed = self._supervisor.start()
        self._tick()
        return failed

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise what `submit` would raise now for any request of this caller: `Overloaded` or `Unavailable`."""
        if self._closing:
            raise Unavailable("the server is shutting down")
        if not self.n_ready and not self._supervisor.recovering:
            raise Unavailable(self._supervisor.trouble or "no worker is ready")
        if caller.background:
            return
        # With fewer workers than asked for, fewer can wait.
        n_ready = max(self.n_ready, 1)
        most = math.ceil(self._config.queue_size * n_ready / max(self.n_workers, n_ready))
        try:
            self._scheduler.check_room(caller.name, most)
        except Overloaded as error:
            raise self._overloaded(error.reason) from None

    def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        kind: RowKind = RowKind.TEXT,
        deadline: float = float("inf"),
        times: Times | None = None,
        progress: Progress | None = None,
        caller: Caller = ANYONE,
    ) -> "asyncio.Future[Rows]":
        """Compute the rows of texts, as `Backend.submit` says; the deadline is on the event loop's clock.

        Raises:
            Unavailable: No worker is ready, or the pool is closing.
            Overloaded: The waiting room is full, or the request could not be done by its deadline.
            TooManyForDeadline: The request could not be done by its deadline on an idle machine either.
            EmbeddingFailed: A text killed workers not long ago.
        """
        self.check_room(caller)
        self._refuse_blocked(tokens)
        if not caller.background:
            self._refuse_late(sum(map(len, tokens)), deadline, caller)
        try:
            request = self._ledger.open(
                tokens, kind=kind, deadline=deadline, times=times, progress=progress, caller=caller
            )
        except Overloaded as error:
            raise self._overloaded(error.reason) from None
        request.settle()  # if it has no texts
        if not caller.background:
            self._turns.request_came()

        def ended(future: "asyncio.Future[Rows]") -> None:
            if future.cancelled():
                self._ledger.cancel(request.id)
            if not caller.background:
                self._turns.request_ended(self._loop.time())

        request.future.add_done_callback(ended)
        self._pump()
        return request.future

    async def restart_workers(self) -> None:
        """Replace every worker, one after another, without losing a request."""
        await self._supervisor.restart_all()

    async def close(self, *, at_once: bool = False) -> None:
        """Stop every worker and wait until none is left. Requests not yet answered fail with `Unavailable`.

        Calling it again waits for the same end.
        """
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        if self._ticker:
            self._ticker.cancel()
        try:
            _settle(self._ledger.close("the server is shutting down"))
            await self._supervisor.close(at_once=at_once)
        finally:
            self._closed.set()

    def on_ready(self, worker: int) -> None:
        self._scheduler.worker_ready(worker)
        self._was_whole = self._was_whole or self.n_ready >= self.n_workers
        self._pump()

    def on_rows(self, worker: int, batch: int, texts: Batch, rows: Rows) -> None:
        result = self._scheduler.complete(batch, worker)
        try:
            self._pump()  # first: the worker is waiting
        finally:  # whatever becomes of other requests, these have their rows
            self._on_batch(len(texts.lengths), len(texts.tokens))
            _settle(self._ledger.put(result, texts, rows))

    def on_error(self, worker: int, batch: int, reason: str) -> None:
        logger.warning("worker %d failed on a batch: %s", worker, reason)
        _settle(self._ledger.fail(self._scheduler.fail(batch, worker), reason))
        self._pump()

    def on_retired(self, worker: int) -> int:
        self._scheduler.retire(worker)
        return self._scheduler.n_held(worker)

    def on_lost(self, worker: int, suspect: bool) -> None:
        failures = self._scheduler.worker_lost(worker, suspect=suspect)
        for failure in failures:
            self._block(self._ledger.text(failure))
        _settle(self._ledger.fail(failures, "a worker process died on it"))
        self._pump()

    def _pump(self) -> None:
        n_background = self._scheduler.n_background
        for assignment in self._scheduler.assign(background=n_background > 0 and self._background_may_run()):
            batch = Batch.join(*self._ledger.texts(assignment))
            n_possible = len(batch.tokens)
            if not self._scheduler.n_waiting and not n_background:  # the batch is small for lack of work
                n_possible = max(n_possible, self._config.max_batch_tokens)
            self._supervisor.send(assignment.worker, assignment.batch, assignment.n_threads, batch, n_possible)
        if self._scheduler.n_background < n_background:
            self._turns.ran(self._loop.time())

    def _background_may_run(self) -> bool:
        return self._turns.may_run(self._loop.time())

    def _tick(self) -> None:
        if self._scheduler.n_background:
            self._pump()
        _settle(self._ledger.expire(self._loop.time(), self._config.timeout_ms))
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _refuse_late(self, n_tokens: int, deadline: float, caller: Caller) -> None:
        """Raise `TooManyForDeadline` or `Overloaded` for a request that could not be answered by its deadline."""
        rate = self._rate()
        if not rate:
            return
        # Asked to come again, a client would do so for ever.
        limit = int(self._supervisor.rate * self.n_workers * CAUTION * self._config.timeout_ms / 1000)
        if n_tokens > limit and deadline < float("inf"):
            raise TooManyForDeadline(n_tokens, limit, self._config.timeout_ms)
        n_before = self._scheduler.tokens_before(n_tokens, caller.name)
        # The limit was cautious. With nothing else to do, a request within it is taken though some of its time went by
        # while it was read: it would come again just as late.
        wait = n_before / rate / (1 if n_before == n_tokens else CAUTION)
        left = deadline - self._loop.time()
        if wait > left:
            raise Overloaded(
                f"this request could take {wait:.1f} s to be answered, but {left:.1f} s are left of timeout_ms",
                min(max(wait - left, 1.0), MAX_RETRY_AFTER_S),
            )

    def _overloaded(self, reason: str) -> Overloaded:
        return Overloaded(reason, retry_after_s(self._scheduler.waiting_tokens, self._rate()))

    def _block(self, text: Tokens) -> None:
        logger.error("a text of %d tokens killed workers, and is refused for %.0f s", len(text), BLOCKED_S)
        while len(self._blocked) >= MAX_BLOCKED:
            del self._blocked[next(iter(self._blocked))]
        self._blocked.pop(text.tobytes(), None)  # so that they stay in order
        self._blocked[text.tobytes()] = self._loop.time() + BLOCKED_S

    def _refuse_blocked(self, tokens: Sequence[Tokens]) -> None:
        """Raise `EmbeddingFailed` for a text that killed workers not long ago."""
        now = self._loop.time()
        while self._blocked and next(iter(self._blocked.values())) <= now:
            del self._blocked[next(iter(self._blocked))]
        if not self._blocked:
            return
        for index, text in enumerate(tokens):
            if self._blocked.get(text.tobytes(), now) > now:
                reason = "worker processes died on it not long ago, so it is not tried again yet"
                raise EmbeddingFailed(index, reason)

    def _rate(self) -> float:
        """Return the tokens a second of the ready workers together, of one while none is ready, or 0 while unknown."""
        return self._supervisor.rate * max(self.n_ready, 1)

    def _status(self) -> PoolStatus:
        if self.n_ready >= self.n_workers:
            return "ok"
        if not self._was_whole:
            return "starting"
        return "degraded" if self.n_ready else "unavailable"


def retry_after_s(waiting_tokens: int, rate: float) -> float:
    """Return when a refused client should come again: when the texts that wait now will have been computed."""
    wait = waiting_tokens / rate if rate else 1.0
    return min(max(wait, 1.0), MAX_RETRY_AFTER_S)


def _settle(requests: Iterable[OpenRequest["asyncio.Future[Rows]"]]) -> None:
    for request in requests:
        request.settle()
