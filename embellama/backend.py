"""`Backend`: the protocol of everything that computes rows. Token ids in, a future of rows out.

Job.tokens ──► Backend.submit ──► a future of rows ──► Job.finish

`Pool` (threads of this process) and the server's `Dispatcher` (worker processes) are back ends. A feature that stores,
shares or reroutes work is a back end around another one.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

import msgspec

from embellama.batch import RowKind, Tokens

#: Called with the number of texts that have their rows, and of all texts of a request.
Progress = Callable[[int, int], None]

# A future of rows: `concurrent.futures.Future[Rows]` for threads, `asyncio.Future[Rows]` on an event loop.
RowsFuture = TypeVar("RowsFuture", covariant=True)


class Times:
    """Times of one request, filled in by its back end.

    Attributes:
        started: When its first text was given to a worker, on `time.monotonic`'s clock; 0 before that.
        looked_up: When a cache had been asked for texts, as far as that was before `started`; 0 without a cache.
        cached_tokens: Tokens of the texts that were not computed for it, because their rows were known or were being
            computed; counted when it has its rows.
    """

    def __init__(self) -> None:
        self.started = self.looked_up = 0.0
        self.cached_tokens = 0


class Caller(NamedTuple):
    """Who asks for rows.

    name: Callers of one name are one: they share its part of the workers' time.
    shares_cache: Whether its rows may be kept for others, and those of others be its own.
    background: Whether its requests run only while there is nothing else to do. Each is one batch then, so it should
        fill one; it is computed beside no other texts, and no cache knows of it: its rows are the same to the last bit
        whenever it is computed.
    """

    name: str = ""
    shares_cache: bool = True
    background: bool = False


#: The caller where nobody has to say who he is.
ANYONE = Caller()


WorkerStage = Literal["starting", "ready", "retired", "stopping", "gone"]


class WorkerState(NamedTuple):
    """Time and memory of one worker's place in a pool; a process that replaces another takes its place.

    busy_s: Seconds in which a process there had a batch, of batches that it has answered.
    memory: The process's memory without the pages of files it maps, in bytes; 0 while there is no process.
    resident: The process's resident memory in bytes.
    stage: How far the process is in its life; ``gone`` while there is none.
    pid: Its process id; 0 while there is none.
    n_restarts: Processes that took the place after the first.
    computing_s: Seconds for which it has had the batch that it computes now.
    """

    busy_s: float
    memory: int
    resident: int
    stage: WorkerStage = "gone"
    pid: int = 0
    n_restarts: int = 0
    computing_s: float = 0.0


class LayerState(NamedTuple):
    """One layer of a cache of rows.

    name: The layer.
    n_hits: Texts whose rows it had when it was asked.
    n_misses: Texts whose rows it did not have.
    n_bytes: Bytes that it takes; None where only the store itself knows.
    n_evicted: Entries dropped because there were too many bytes.
    trouble: Why it reads or writes nothing now, if it does not.
    """

    name: str
    n_hits: int
    n_misses: int
    n_bytes: int | None
    n_evicted: int
    trouble: str = ""


PoolStatus = Literal["starting", "ok", "degraded", "unavailable"]


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a back end at one moment, for metrics, health and pages.

    Attributes:
        status: ``starting`` until all workers have been ready once; then ``ok`` while all are, ``degraded`` while fewer
            are, ``unavailable`` while none is.
        n_workers: Workers asked for.
        n_ready: Workers that can be given batches.
        n_restarts: Workers that died and were started again.
        workers: The use of each place; empty for threads, which share the process's memory.
        n_open: Requests not yet answered.
        n_waiting: Those of them with texts that no worker has yet.
        waiting_tokens: Tokens of those texts.
        rate: Tokens a second that all ready workers compute with enough to do; 0 while unknown.
        trouble: Why workers cannot serve, if they cannot.
        cache: The layers of the cache of rows, in the order in which they are asked; empty without one.
    """

    status: PoolStatus
    n_workers: int
    n_ready: int
    n_restarts: int = 0
    workers: tuple[WorkerState, ...] = ()
    n_open: int
    n_waiting: int
    waiting_tokens: int
    rate: float = 0.0
    trouble: str = ""
    cache: tuple[LayerState, ...] = ()

    @property
    def wait_s(self) -> float:
        """Seconds of work that waits, at the rate measured lately; 0 if that is unknown."""
        return self.waiting_tokens / self.rate if self.rate else 0.0


class Backend(Protocol[RowsFuture]):
    """Computes rows of texts."""

    @property
    def state(self) -> PoolState:
        """The current state; too costly to read for every request."""

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise what `submit` would raise now for this caller, whatever the texts: `Overloaded` or `Unavailable`."""

    def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        kind: RowKind = RowKind.TEXT,
        deadline: float = float("inf"),
        times: Times | None = None,
        progress: Progress | None = None,
        caller: Caller = ANYONE,
    ) -> RowsFuture:
        """Compute the rows of texts.

        Args:
            tokens: Token ids of each text, ``(n_tokens,) int32``, special tokens included.
            kind: The kind of row that every text is computed for.
            deadline: When the future fails with `DeadlineExceeded`, on the clock of `time.monotonic`.
            times: Filled in as the request is computed.
            progress: Called when more texts have their rows: quickly, one call at a time, on the back end's thread.
            caller: Who asks.

        Returns:
            A future of the rows, all texts' one after another, ``(n_rows, dim) float32``, the caller's own. It may fail
            with `EmbeddingFailed`, whose index is a position in `tokens`, and with whatever this raises, where that is
            found out later. Cancelling it drops what is still queued.

        Raises:
            Overloaded: There is no room, or the deadline could not be kept.
            Unavailable: No worker can compute it.
            InputError: With nothing else to do, the deadline could not be kept either (`TooManyForDeadline`).
            EmbeddingFailed: A text is known to make workers die.
        """

    def close(self) -> Awaitable[None] | None:
        """End every open request, then free what computes them, and close the back end inside.

        Returns:
            None once that is done; where futures are an event loop's, something to await until it is.
        """
