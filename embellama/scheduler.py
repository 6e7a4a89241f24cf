"""Decide which texts run next, together, where, and on how many threads.

   submit ──► waiting room: a queue of short requests and one of long ones, each with its texts by length
                 │ assign: the request at the head gives as many texts as fit a batch, and the next ones fill it up.
                 │         Long requests come in the order in which they would end if all were served in turns. Half
                 │         a batch is for short ones, so that they need not wait for the long, and half for the long
                 ▼
              batches held by a worker: at most `n_slots`, the first of them running
                 │ complete ──► rows to copy out, requests that have every row
                 │ fail, worker_lost ──► the batch again, or text by text, or the one text at fault
                 ▼
              gone

Pure logic: no clock, no I/O, no threads. Its caller passes in time and events, from one thread at a time: `pool.py` for
threads, the server's `dispatcher.py` for worker processes, the tests for simulated workers.
"""

import bisect
import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from embellama.config import EngineConfig
from embellama.errors import Overloaded

# How many requests a batch is filled from. Fewer could miss a text that fits; more costs the caller time, about 0.5 µs
# each, in which no batch is sent.
LOOK_AHEAD = 64

# After a small request came while long ones were waiting, the next so many batches are small ones: an eighth of a full
# batch, of short requests or of long ones but not of both, and no worker holds a second one. So the next short request
# waits an eighth as long for a worker. More batches keep this up for longer, at the price of about a sixth of the
# throughput.
SMALL_BATCHES = 64
SMALL_BATCH_SHARE = 8

# A request of at most a quarter of a full batch is a small one, for which batches are made small.
SMALL_REQUEST_SHARE = 4

# Batches by which the share of long requests is averaged. Fewer, and it follows the moment; more, and it is late.
RECENT_BATCHES = 64


class Text(NamedTuple):
    """One text of one request."""

    request: int
    position: int  # in the caller's list


class Assignment(NamedTuple):
    """A batch for a worker to run."""

    batch: int
    worker: int
    texts: list[Text]
    n_threads: int


class BatchResult(NamedTuple):
    """What to do with the rows of a batch that was computed."""

    rows: list[tuple[int, Text]]  # (row of the batch, whose it is), for texts still wanted
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


class WaitingRequest:
    """One request that has not every row yet.

    Attributes:
        id: The request's number.
        unanswered: Texts without their rows yet.
        turns: When it would end if all long requests were served in turns, see `Scheduler._turns`.
        waiting: Texts in the waiting room, shortest first, as (n_tokens, index).
    """

    def __init__(self, id: int, n_tokens: Sequence[int]):
        self.id = id
        self.unanswered = len(n_tokens)
        self.turns = 0.0
        self.waiting = sorted((n, index) for index, n in enumerate(n_tokens))

    def largest_within(self, room: float) -> tuple[int, int] | None:
        """Take out the longest waiting text of at most `room` tokens, as (n_tokens, index)."""
        place = bisect.bisect_right(self.waiting, (room, float("inf")))
        return self.waiting.pop(place - 1) if place else None


class _Batch(NamedTuple):
    """Texts that run together."""

    texts: list[Text]
    deaths: int  # workers that died, or failed, on exactly these texts
    n_tokens: int


class Scheduler:
    """Decides which waiting texts run next and where, and keeps the batches that each worker holds."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._ids = itertools.count(1)
        self._requests: dict[int, WaitingRequest] = {}  # every request not yet answered
        # Those of them with waiting texts, the next one first: those that fit a batch, and those that do not.
        self._short: dict[int, WaitingRequest] = {}
        self._long: dict[int, WaitingRequest] = {}
        # Tokens that each long request would have had by now if they were served in turns, of one token each. They are
        # served one after another instead, in the order in which they would then end: none ends later, most sooner.
        # In turns, a crowd of long requests ends together, after the deadline (Friedman and Henderson 2003, "Fairness
        # and efficiency in web server protocols").
        self._turns = 0.0
        self._short_first = True
        self._n_small_batches = 0  # how many of the next batches are to be small
        self._waiting_tokens = 0
        self._short_tokens = 0  # of those, the short requests'
        self._long_share = 1.0  # of the tokens in recent batches, while long requests waited: theirs, at least half
        self._again: deque[_Batch] = deque()  # batches that must run again, ahead of all others
        self._held: dict[int, dict[int, _Batch]] = {}  # each ready worker's batches, the running one first
        self._retired: set[int] = set()  # of the ready, those that get no more
        self._deadlines: list[tuple[float, int]] = []  # heap

    @property
    def n_waiting(self) -> int:
        """Requests in the waiting room."""
        return len(self._short) + len(self._long)

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the waiting room."""
        return self._waiting_tokens

    @property
    def n_open(self) -> int:
        """Requests not yet answered."""
        return len(self._requests)

    @property
    def workers(self) -> list[int]:
        """Workers that may be given batches: those that are ready and not retired."""
        return [worker for worker in self._held if worker not in self._retired]

    def n_held(self, worker: int) -> int:
        """Batches a worker holds."""
        return len(self._held.get(worker, ()))

    def submit(self, n_tokens: Sequence[int], deadline: float = float("inf")) -> int:
        """Put a request into the waiting room.

        Args:
            n_tokens: Tokens in each of its texts, ``(n_texts,)``, at least one text.
            deadline: When `expired` reports it, on the caller's clock.

        Returns:
            The request's id.

        Raises:
            Overloaded: The waiting room is full.
        """
        self.check_room(sum(n_tokens))
        request = WaitingRequest(next(self._ids), n_tokens)
        self._requests[request.id] = request
        short = sum(n_tokens) <= self._limits.max_batch_tokens
        if short:
            self._short[request.id] = request
            self._short_tokens += sum(n_tokens)
        else:
            request.turns = self._turns + sum(n_tokens)
            self._long[request.id] = request
            self._long = dict(sorted(self._long.items(), key=lambda item: item[1].turns))
        self._waiting_tokens += sum(n_tokens)
        if self._long and sum(n_tokens) <= self._limits.max_batch_tokens // SMALL_REQUEST_SHARE:
            self._n_small_batches = SMALL_BATCHES
        if deadline != float("inf"):
            heapq.heappush(self._deadlines, (deadline, request.id))
        return request.id

    def check_room(self, n_tokens: int = 0) -> None:
        """Raise `Overloaded` if there is no room for a request of so many tokens; an empty room takes any."""
        most, most_tokens = self._limits.max_waiting, self._limits.max_waiting_tokens
        if most is not None and self.n_waiting >= most:
            raise Overloaded(f"{most} requests are waiting already, the most allowed")
        if most_tokens is not None and self._waiting_tokens and self._waiting_tokens + n_tokens > most_tokens:
            raise Overloaded(f"{self._waiting_tokens} tokens are waiting already; {most_tokens} are the most allowed")

    def tokens_before(self, n_tokens: int) -> int:
        """Estimate how many tokens are computed until a new request of so many is answered, its own included.

        As if more requests kept coming: a long one is answered no later than if all took turns, and gets as much of
        the batches as long ones did lately; a short one gets half of them while there are long ones.
        """
        held = sum(batch.n_tokens for held in self._held.values() for batch in held.values())
        if n_tokens <= self._limits.max_batch_tokens:
            return held + (self._short_tokens + n_tokens) * (2 if self._long else 1)
        turns = min((len(self._long) + 1) * n_tokens, self._waiting_tokens + n_tokens)
        return held + int(turns / self._long_share)

    def cancel(self, id: int) -> None:
        """Forget a request: nothing of it runs any more, and what is running is thrown away. Unknown ids do nothing."""
        request = self._requests.pop(id, None)
        if request is None:
            return
        n_tokens = sum(n for n, _ in request.waiting)
        if self._short.pop(id, None):
            self._short_tokens -= n_tokens
            self._waiting_tokens -= n_tokens
        elif self._long.pop(id, None):
            self._waiting_tokens -= n_tokens

    def expired(self, now: float) -> list[int]:
        """Cancel every request whose deadline has come, and return their ids."""
        ids = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id = heapq.heappop(self._deadlines)
            if id in self._requests:
                self.cancel(id)
                ids.append(id)
        return ids

    def worker_ready(self, worker: int) -> None:
        """Take a worker into service; it holds no batches yet."""
        self._held[worker] = {}

    def assign(self) -> Iterator[Assignment]:
        """Yield batches to send, until no worker should get another."""
        while assignment := self._assign_one():
            yield assignment

    def complete(self, batch: int, worker: int) -> BatchResult:
        """Take a batch off its worker after it was computed; one that the worker does not hold is ignored."""
        done = self._held.get(worker, {}).pop(batch, None)
        result = BatchResult([], [])
        for row, text in enumerate(done.texts if done else ()):
            if request := self._requests.get(text.request):
                result.rows.append((row, text))
                request.unanswered -= 1
                if request.unanswered == 0:
                    del self._requests[request.id]
                    result.finished.append(request.id)
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

    @property
    def _small_batch_tokens(self) -> int:
        return self._limits.max_batch_tokens // SMALL_BATCH_SHARE

    def _run_again(self, batch: _Batch, n_deaths: int) -> list[Failure]:
        if n_deaths < 2:
            self._again.append(_Batch(batch.texts, n_deaths, batch.n_tokens))
            return []
        # One more death, and a text is convicted.
        return self._run_alone(batch, n_deaths=1)

    def _run_alone(self, batch: _Batch, n_deaths: int) -> list[Failure]:
        """Run a batch text by text, each as one on which so many workers died; one that was alone already fails."""
        if len(batch.texts) > 1:
            # Not in halves: each half with the text at fault in it would cost another worker, and starting one takes
            # longer than computing a batch text by text.
            n_tokens = batch.n_tokens // len(batch.texts)
            self._again.extend(_Batch([text], n_deaths, n_tokens) for text in batch.texts)
            return []
        (text,) = batch.texts
        if text.request not in self._requests:
            return []
        self.cancel(text.request)
        return [Failure(*text)]

    def _assign_one(self) -> Assignment | None:
        serving = self.workers
        if not serving:
            return None
        # With more short requests than fit a batch, small ones would only make all of them wait longer.
        small = self._n_small_batches > 0 and bool(self._long) and self._short_tokens <= self._limits.max_batch_tokens
        n_held = min(map(self.n_held, serving))
        if n_held >= (1 if small else self._limits.n_slots):
            return None
        free = [worker for worker in serving if self.n_held(worker) == n_held]
        batch = self._next_again()
        # A second batch is for a worker not to idle on a message. Anything less than a full one can wait for the
        # worker to be free, and grow meanwhile.
        if batch is None and self.n_waiting and (n_held == 0 or self._waiting_tokens >= self._limits.max_batch_tokens):
            batch = self._pick(len(free), small)
            self._n_small_batches = max(self._n_small_batches - 1, 0)
        if batch is None:
            return None
        alone = not self.n_waiting and not self._again and not any(self._held.values())
        id = next(self._ids)
        self._held[free[0]][id] = batch
        # The ready workers share the cores: of two workers, one may be starting again.
        n_threads = max(self._limits.n_threads_busy, self._limits.n_threads_alone // len(serving))
        return Assignment(id, free[0], batch.texts, self._limits.n_threads_alone if alone else n_threads)

    def _next_again(self) -> _Batch | None:
        while self._again:
            batch = self._again.popleft()
            texts = [text for text in batch.texts if text.request in self._requests]
            if texts:
                return _Batch(texts, batch.deaths, batch.n_tokens)
        return None

    def _pick(self, n_free: int, small: bool) -> _Batch:
        """Take texts for one batch, so that `n_free` workers get equal shares of all that wait."""
        most = self._small_batch_tokens if small else self._limits.max_batch_tokens
        had_long, n_short_before = bool(self._long), self._short_tokens
        n_rounds = -(-self._waiting_tokens // (most * n_free))
        share = self._waiting_tokens / (n_rounds * n_free)
        texts: list[Text] = []
        n_tokens = 0

        def take(requests: dict[int, WaitingRequest], share: float) -> None:
            nonlocal n_tokens
            n_before, n_requests = n_tokens, len(requests)
            for request in list(itertools.islice(requests.values(), LOOK_AHEAD)):
                if n_tokens >= share or len(texts) == self._limits.max_batch_size:
                    break
                while len(texts) < self._limits.max_batch_size:
                    # The first text goes whatever its length, but into a small batch one that fits if there is any.
                    # Another may go over the share by half of itself, so that rounding does not leave a crumb, but
                    # never over the limit.
                    room = min(most - n_tokens, 2 * (share - n_tokens)) if texts else most if small else float("inf")
                    taken = request.largest_within(room)
                    if taken is None:
                        if texts or not request.waiting:
                            break
                        taken = request.waiting.pop(0)
                    texts.append(Text(request.id, taken[1]))
                    n_tokens += taken[0]
                if not request.waiting:
                    del requests[request.id]
            if requests is self._short:
                self._short_tokens -= n_tokens - n_before
            elif n_requests:
                self._turns += (n_tokens - n_before) / n_requests

        # In turns, so that neither short requests nor long ones can keep the others out.
        first, second = (self._short, self._long) if self._short_first else (self._long, self._short)
        if first and second:
            self._short_first = not self._short_first
            # In a small batch, short requests are not to wait for a long one's texts.
            take(first, share if small else share / 2)
        else:
            self._short_first = True
        if not small or not texts:
            take(second, share)
            take(first, share)
        self._waiting_tokens -= n_tokens
        if had_long:
            share = max(0.5, 1 - (n_short_before - self._short_tokens) / n_tokens)
            self._long_share += (share - self._long_share) / RECENT_BATCHES
        return _Batch(texts, 0, n_tokens)
