"""`Ledger`: the open requests of one pool, with the rows that have come and the futures that wait for them.

   Ledger.open ──► OpenRequest, and its texts in the Scheduler's waiting room
                      │ texts: those of an assignment
                      │ put: the rows of a batch into their requests
                      ▼
   fail, expire, cancel, put ──► requests that are over ──► OpenRequest.settle ──► their futures

Used by the pool of threads (`pool.py`) and by that of worker processes (the server's `dispatcher.py`), by one thread at
a time. `settle` runs callers' code, so it is called after the lock that guards the ledger was released.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from embellama.backend import ANYONE, Caller, Progress, Times
from embellama.batch import Batch, RowKind, Rows, Tokens, row_starts
from embellama.errors import DeadlineExceeded, EmbeddingFailed, Unavailable
from embellama.scheduler import Assignment, BatchResult, Failure, Scheduler

logger = logging.getLogger("embellama.ledger")

# Raised by a future that is cancelled, or that has its result, when it is given another.
_ALREADY_DONE = (asyncio.InvalidStateError, concurrent.futures.InvalidStateError)


class SettableFuture(Protocol):
    """The methods that a ledger needs of `concurrent.futures.Future` and `asyncio.Future`."""

    def done(self) -> bool: ...

    def set_result(self, result: Rows, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


RowsFuture = TypeVar("RowsFuture", bound=SettableFuture)


class OpenRequest(Generic[RowsFuture]):
    """One request, from `Backend.submit` until its future has an outcome.

    Attributes:
        id: The scheduler's number for it; 0 if it has no texts.
        tokens: Its texts.
        kind: The kind of its rows.
        future: Given to the caller; it gets the outcome.
        times: The caller's, to be filled in.
        time_limit_s: Seconds from its opening to its deadline.
    """

    def __init__(
        self,
        tokens: Sequence[Tokens],
        kind: RowKind,
        dim: int,
        future: RowsFuture,
        deadline: float,
        times: Times | None,
        progress: Progress | None,
    ):
        self.id = 0
        self.tokens = tokens
        self.kind = kind
        self.future = future
        self.times = times or Times()
        self.time_limit_s = deadline - time.monotonic()
        self._starts = row_starts(tokens, kind)
        self._rows = np.empty((self._starts[-1], dim), np.float32)
        self._n_done = 0  # texts
        self._outcome: Rows | Exception | None = None if tokens else self._rows
        self._report = ProgressReport(progress, len(tokens)) if progress else None

    def put(self, position: int, rows: Rows) -> None:
        """Take the rows of the text at `position`."""
        self._rows[self._starts[position] : self._starts[position + 1]] = rows
        self._n_done += 1
        if self._n_done == len(self.tokens):
            self._outcome = self._rows

    def fail(self, error: Exception) -> None:
        """Let `error` be the outcome."""
        self._outcome = error

    def settle(self) -> None:
        """Tell `progress` what has come and, if that is all, give the future its outcome."""
        if self.future.done():  # cancelled: its caller expects to hear no more
            return
        if self._report:
            self._report.tell(self._n_done)
        if self._outcome is not None:
            set_outcome(self.future, self._outcome)


def set_outcome(future: SettableFuture, outcome: Rows | Exception) -> None:
    """Give a future its rows or its error, unless it was cancelled."""
    with contextlib.suppress(*_ALREADY_DONE):  # cancelled just now, by another thread
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class ProgressReport:
    """Calls a request's `progress`: one call at a time, and none after the last."""

    def __init__(self, progress: Progress, n_texts: int):
        self._progress: Progress | None = progress
        self._n_texts = n_texts
        self._n_told = 0
        self._telling = threading.Lock()

    def tell(self, n_done: int) -> None:
        with self._telling:
            if self._progress and self._n_told < n_done:
                self._n_told = n_done
                try:
                    self._progress(n_done, self._n_texts)
                except BaseException:  # even SystemExit: it would end the thread, and nobody would be answered
                    logger.exception("a progress callback failed; it is not called again")
                    self._progress = None


class Ledger(Generic[RowsFuture]):
    """The open requests of one pool. The scheduler beside it decides which of their texts are computed next."""

    def __init__(self, scheduler: Scheduler, dim: int, new_future: Callable[[], RowsFuture]):
        """Prepare an empty ledger for rows of `dim` numbers."""
        self._scheduler = scheduler
        self._dim = dim
        self._new_future = new_future
        self._requests: dict[int, OpenRequest[RowsFuture]] = {}

    def __len__(self) -> int:
        """Count the open requests."""
        return len(self._requests)

    def open(
        self,
        tokens: Sequence[Tokens],
        *,
        kind: RowKind = RowKind.TEXT,
        deadline: float = float("inf"),
        times: Times | None = None,
        progress: Progress | None = None,
        caller: Caller = ANYONE,
    ) -> OpenRequest[RowsFuture]:
        """Open a request and put its texts into the waiting room; without texts, it only needs to be settled.

        Raises:
            Overloaded: The waiting room is full.
        """
        # First of all: rows are hundreds of megabytes, and what is refused needs none.
        lengths = [len(text) for text in tokens]
        id = self._scheduler.submit(lengths, deadline, caller.name, background=caller.background) if tokens else 0
        try:
            request = OpenRequest(tokens, kind, self._dim, self._new_future(), deadline, times, progress)
        except BaseException:  # no memory
            self._scheduler.cancel(id)
            raise
        if tokens:
            request.id = id
            self._requests[id] = request
        return request

    def text(self, failure: Failure) -> Tokens:
        """Return the text at fault in a failure, while its request is open."""
        return self._requests[failure.request].tokens[failure.position]

    def texts(self, assignment: Assignment) -> tuple[list[Tokens], list[RowKind]]:
        """Return the texts of an assignment as `Batch.join` takes them, and note that their requests have started."""
        requests = [self._requests[text.request] for text in assignment.texts]
        now = time.monotonic()
        for request in requests:
            request.times.started = request.times.started or now
        tokens = [request.tokens[text.position] for request, text in zip(requests, assignment.texts, strict=True)]
        return tokens, [request.kind for request in requests]

    def put(self, result: BatchResult, batch: Batch, rows: Rows) -> Iterable[OpenRequest[RowsFuture]]:
        """Copy the rows of a batch, ``(sum of batch.n_rows, dim)``, into their requests; return those to be settled."""
        ends = range(1, len(batch.lengths) + 1) if batch.kinds is None else np.cumsum(batch.n_rows).tolist()
        touched = {}
        for i, text in result.rows:
            request = touched[text.request] = self._requests[text.request]
            request.put(text.position, rows[ends[i - 1] if i else 0 : ends[i]])
        for id in result.finished:
            del self._requests[id]
        return touched.values()

    def fail(self, failures: Sequence[Failure], reason: str) -> list[OpenRequest[RowsFuture]]:
        """Fail each request, with an error that names its text at fault; return them to be settled."""
        return [self._end(request, EmbeddingFailed(position, reason)) for request, position in failures]

    def expire(self, now: float, timeout_ms: int | None = None) -> list[OpenRequest[RowsFuture]]:
        """Fail the requests whose deadline has come; return them to be settled.

        Args:
            now: The time, on the clock of their deadlines.
            timeout_ms: The time limit to name in the error; by default each request's own.
        """
        late = []
        for id in self._scheduler.expired(now):
            limit_ms = timeout_ms or round(1000 * self._requests[id].time_limit_s)
            late.append(self._end(id, DeadlineExceeded(limit_ms)))
        return late

    def close(self, reason: str) -> list[OpenRequest[RowsFuture]]:
        """Fail every open request with `Unavailable`; return them to be settled."""
        return [self._end(id, Unavailable(reason)) for id in list(self._requests)]

    def cancel(self, id: int) -> None:
        """Forget a request: nothing of it runs any more. Unknown ids do nothing."""
        self._scheduler.cancel(id)
        self._requests.pop(id, None)

    def _end(self, id: int, error: Exception) -> OpenRequest[RowsFuture]:
        request = self._requests[id]
        self.cancel(id)
        request.fail(error)
        return request
