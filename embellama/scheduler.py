"""Decide which texts run next, together, where, and on how many threads.

   submit ──► WaitingRoom (`waiting_room.py`); BackgroundQueue (`background.py`) for what can wait for idle workers
                 │ assign: a worker may have another batch, so the room picks texts for one; an empty one lets the queue
                 ▼
              batches held by a worker: at most `n_slots`, the first of them running
                 │ complete ──► rows to copy out, requests that have every row
                 │ fail, worker_lost ──► the batch again, or text by text, or the one text at fault
                 ▼
              gone

Pure logic: no clock, no I/O, no threads. Its caller passes in time and events, from one thread at a time: `pool.py` for
threads, the server's `dispatcher.py` for worker processes, the tests for simulated workers.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from embellama.background import BackgroundQueue
from embellama.caller_queue import Text
from embellama.config import EngineConfig
from embellama.waiting_room import WaitingRoom


class Assignment(NamedTuple):
    """A batch for a worker to run."""

    batch: int
    worker: int
    texts: list[Text]
    n_threads: int


class BatchResult(NamedTuple):
    """The rows of a computed batch that are still wanted, and the requests that they finish."""

    rows: list[tuple[int, Text]]  # (row of the batch, its text), for texts still wanted
    finished: list[int]  # requests that now have every row


class Failure(NamedTuple):
    """A request that failed, by the one text at fault."""

    request: int
    position: int  # in the caller's list


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on batches, on what a worker holds and on what may wait."""

    max_batch_tokens: int
    max_batch_size: int
    n_threads_busy: int
    n_threads_alone: int
    n_slots: int = 1  # batches a worker may hold, the running one included
    max_waiting: int | None = None  # requests in the waiting room; None for no limit
    max_waiting_tokens: int | None = None  # tokens in the waiting room

    @classmethod
    def of(
        cls,
        config: EngineConfig,
        *,
        n_slots: int = 1,
        max_waiting: int | None = None,
        max_waiting_tokens: int | None = None,
    ) -> "Limits":
        """Make limits of `config`, already checked."""
        return cls(
            max_batch_tokens=config.max_batch_tokens,
            max_batch_size=config.max_batch_size,
            n_threads_busy=config.n_threads_busy,
            n_threads_alone=config.n_threads_alone,
            n_slots=n_slots,
            max_waiting=max_waiting,
            max_waiting_tokens=max_waiting_tokens,
        )


class _Batch(NamedTuple):
    """Texts that run together."""

    texts: list[Text]
    deaths: int  # workers that died, or failed, on exactly these texts
    n_tokens: int
    background: bool = False


class Scheduler:
    """Decides which waiting texts run next and where, and keeps the batches that each worker holds."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._room = WaitingRoom(
            max_batch_tokens=limits.max_batch_tokens,
            max_batch_size=limits.max_batch_size,
            max_waiting=limits.max_waiting,
            max_waiting_tokens=limits.max_waiting_tokens,
        )
        self._background = BackgroundQueue()
        self._ids = itertools.count(1)
        self._n_unanswered: dict[int, int] = {}  # each open request's texts that have no row yet
        self._again: deque[_Batch] = deque()  # batches that must run again, ahead of all others
        self._held: dict[int, dict[int, _Batch]] = {}  # each ready worker's batches, the running one first
        self._retired: set[int] = set()  # of the ready, those that get no more
        # Of all open requests, those whose texts are running included: so not the waiting room's.
        self._deadlines: list[tuple[float, int]] = []  # heap

    @property
    def n_waiting(self) -> int:
        """Requests in the waiting room."""
        return self._room.n_requests

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the waiting room."""
        return self._room.n_tokens

    @property
    def n_background(self) -> int:
        """Requests that wait for workers to be idle."""
        return len(self._background)

    @property
    def n_open(self) -> int:
        """Requests not yet answered."""
        return len(self._n_unanswered)

    @property
    def workers(self) -> list[int]:
        """Workers that may be given batches: those that are ready and not retired."""
        return [worker for worker in self._held if worker not in self._retired]

    def n_held(self, worker: int) -> int:
        """Batches a worker holds."""
        return len(self._held.get(worker, ()))

    def submit(
        self, n_tokens: Sequence[int], deadline: float = float("inf"), caller: str = "", *, background: bool = False
    ) -> int:
        """Put a request into the waiting room, or among those that wait for workers to be idle.

        Args:
            n_tokens: Tokens in each of its texts, ``(n_texts,)``, at least one text.
            deadline: When `expired` reports it, on the clock of who drives the scheduler.
            caller: Who asks: those of one name are one.
            background: Whether it runs, as one batch, only while no others wait; such requests have no limit here.

        Returns:
            The request's id.

        Raises:
            Overloaded: The waiting room is full.
        """
        id = next(self._ids)
        if background:
            self._background.add(id, n_tokens, caller)
        else:
            self._room.add(id, n_tokens, caller)
        self._n_unanswered[id] = len(n_tokens)
        if deadline != float("inf"):
            heapq.heappush(self._deadlines, (deadline, id))
        return id

    def check_room(self, caller: str = "", max_waiting: int | None = None) -> None:
        """Raise `Overloaded` if a caller's request finds no room, as `WaitingRoom.check_room` says."""
        self._room.check_room(0, caller, max_waiting)

    def tokens_before(self, n_tokens: int, caller: str = "") -> int:
        """Estimate how many tokens are computed until a caller's new request of so many is answered, with its own."""
        if not self._room.n_requests and not any(self._held.values()):
            return n_tokens
        held = sum(batch.n_tokens for held in self._held.values() for batch in held.values())
        return held + self._room.tokens_before(n_tokens, caller)

    def cancel(self, id: int) -> None:
        """Forget a request: nothing of it runs any more, and what is running is thrown away. Unknown ids do nothing."""
        if self._n_unanswered.pop(id, None):
            self._room.remove(id)
            self._background.remove(id)

    def expired(self, now: float) -> list[int]:
        """Cancel every request whose deadline has come, and return their ids."""
        ids = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id = heapq.heappop(self._deadlines)
            if id in self._n_unanswered:
                self.cancel(id)
                ids.append(id)
        return ids

    def worker_ready(self, worker: int) -> None:
        """Take a worker into service; it holds no batches yet."""
        self._held[worker] = {}

    def assign(self, *, background: bool = True) -> Iterator[Assignment]:
        """Yield batches to send, until no worker should get another; those in the background only if they may run."""
        while assignment := self._assign_one(background):
            yield assignment

    def complete(self, batch: int, worker: int) -> BatchResult:
        """Take a batch off its worker after it was computed; one that the worker does not hold is ignored."""
        done = self._held.get(worker, {}).pop(batch, None)
        result = BatchResult([], [])
        for row, text in enumerate(done.texts if done else ()):
            if n := self._n_unanswered.get(text.request):
                result.rows.append((row, text))
                self._n_unanswered[text.request] = n - 1
                if n == 1:
                    del self._n_unanswered[text.request]
                    result.finished.append(text.request)
        return result

    def fail(self, batch: int, worker: int) -> list[Failure]:
        """Take a batch off a worker that is alive but could not compute it.

        Its texts run again one by one, to find the one at fault: its request fails.
        """
        failed = self._held.get(worker, {}).pop(batch, None)
        # No worker died, so one that is killed next is no proof against the text it is at.
        return self._run_alone(failed, n_deaths=0) if failed else []

    def worker_lost(self, worker: int, *, suspect: bool = True) -> list[Failure]:
        """Take a worker out of service, and run the batches it held on another.

        Args:
            worker: The worker that is gone.
            suspect: Whether the batch it was running may have ended it. When two workers died on a batch, its texts
                run one by one; when another dies on a text alone, that text's request fails.

        Returns:
            The request that fails, if one does.
        """
        self._retired.discard(worker)
        held = list(self._held.pop(worker, {}).values())
        failures: list[Failure] = []
        if held and suspect:
            running = held.pop(0)
            failures = self._run_again(running, n_deaths=running.deaths + 1)
        self._again.extend(held)
        return failures

    def retire(self, worker: int) -> None:
        """Give a worker no more batches; it still answers those it holds."""
        self._retired.add(worker)

    def _run_again(self, batch: _Batch, n_deaths: int) -> list[Failure]:
        if n_deaths < 2:
            self._again.append(batch._replace(deaths=n_deaths))
            return []
        # One more death, and a text is convicted.
        return self._run_alone(batch, n_deaths=1)

    def _run_alone(self, batch: _Batch, n_deaths: int) -> list[Failure]:
        """Run a batch text by text, each as one on which so many workers died; one that was alone already fails."""
        if len(batch.texts) > 1:
            # Not in halves: each half with the text at fault in it would cost another worker, and starting one takes
            # longer than computing a batch text by text.
            n_tokens = batch.n_tokens // len(batch.texts)
            self._again.extend(_Batch([text], n_deaths, n_tokens, batch.background) for text in batch.texts)
            return []
        (text,) = batch.texts
        if text.request not in self._n_unanswered:
            return []
        self.cancel(text.request)
        return [Failure(*text)]

    def _assign_one(self, background: bool) -> Assignment | None:
        serving = self.workers
        if not serving:
            return None
        room = self._room
        small = room.wants_small_batches
        n_held = min(map(self.n_held, serving))
        if n_held >= (1 if small else self._limits.n_slots):
            return None
        free = [worker for worker in serving if self.n_held(worker) == n_held]
        batch = self._next_again()
        # A second batch is for a worker not to idle on a message. Anything less than a full one can wait for the
        # worker to be free, and grow meanwhile.
        if batch is None and room.n_requests and (n_held == 0 or room.n_tokens >= self._limits.max_batch_tokens):
            picked = room.pick(len(free), small=small)
            batch = _Batch(picked.texts, 0, picked.n_tokens)
        elif batch is None and background and n_held == 0 and (taken := self._background.take()):
            # Never a second one: a request that comes now would wait for both.
            batch = _Batch(taken.texts, 0, taken.n_tokens, background=True)
        if batch is None:
            return None
        # With more threads, sums come in another order. What runs in the background always has as many.
        may_have_all = not batch.background
        alone = may_have_all and not room.n_requests and not self._again and not any(self._held.values())
        id = next(self._ids)
        self._held[free[0]][id] = batch
        # The ready workers share the cores: of two workers, one may be starting again.
        n_threads = self._limits.n_threads_busy
        if may_have_all:
            n_threads = max(n_threads, self._limits.n_threads_alone // len(serving))
        return Assignment(id, free[0], batch.texts, self._limits.n_threads_alone if alone else n_threads)

    def _next_again(self) -> _Batch | None:
        while self._again:
            batch = self._again.popleft()
            texts = [text for text in batch.texts if text.request in self._n_unanswered]
            if texts:
                return batch._replace(texts=texts)
        return None
