"""Decide which texts run next, together, where, and on how many threads.

   submit ──► waiting room: a ring of requests, each with its texts by length
                 │ assign: the request at the head gives as many texts as fit a batch, the next ones fill it up,
                 │         and a request with texts left goes to the back
                 ▼
              a worker's hand: at most `n_slots` batches, the first of them running
                 │ complete ──► texts to copy out, requests that are whole
                 │ fail, worker_lost ──► the batch again, or its halves, or the one text at fault
                 ▼
              gone

Pure logic: no clock, no I/O, no threads. Whoever drives it hands in time and events, from one thread at a time:
`engine.py` over threads, the server's `dispatcher.py` over processes, the tests over a simulation.
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

# How many requests a batch is filled from. Fewer could miss a text that fits; more costs the driver time, about
# 0.5 µs each, in which no batch leaves.
LOOK_AHEAD = 64


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


class Answer(NamedTuple):
    """What a finished batch means."""

    rows: list[tuple[int, Text]]  # (row of the batch, whose it is), for texts still wanted
    finished: list[int]  # requests that now have every row


class Failure(NamedTuple):
    """A request that failed, by the one text at fault."""

    request: int
    position: int  # in the caller's list


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler keeps to."""

    max_batch_tokens: int
    max_batch_size: int
    n_threads_busy: int
    n_threads_alone: int
    n_slots: int = 1  # batches a worker may hold, the running one included
    max_waiting: int | None = None  # requests in the waiting room; None for no limit

    @classmethod
    def of(cls, config: EngineConfig, *, n_slots: int = 1, max_waiting: int | None = None) -> "Limits":
        """Take what `config`, already checked, says."""
        return cls(
            max_batch_tokens=config.max_batch_tokens,
            max_batch_size=config.max_batch_size,
            n_threads_busy=config.n_threads_busy,
            n_threads_alone=config.n_threads_alone,
            n_slots=n_slots,
            max_waiting=max_waiting,
        )


class _Request:
    def __init__(self, id: int, n_tokens: Sequence[int]):
        self.id = id
        self.unanswered = len(n_tokens)
        self.waiting = sorted((n, index) for index, n in enumerate(n_tokens))

    def largest_within(self, room: float) -> tuple[int, int] | None:
        """Take out the longest waiting text of at most `room` tokens, as (n_tokens, index)."""
        place = bisect.bisect_right(self.waiting, (room, float("inf")))
        return self.waiting.pop(place - 1) if place else None


class _Batch(NamedTuple):
    texts: list[Text]
    deaths: int  # workers that died, or failed, on exactly these texts


class Scheduler:
    """The waiting room, the workers' hands, and the rules between them."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._ids = itertools.count(1)
        self._requests: dict[int, _Request] = {}  # every request not yet answered
        self._ring: dict[int, _Request] = {}  # those of them with waiting texts, the next one first
        self._waiting_tokens = 0
        self._again: deque[_Batch] = deque()  # batches that must run again, ahead of the ring
        self._hands: dict[int, dict[int, _Batch]] = {}  # each ready worker's batches, the running one first
        self._deadlines: list[tuple[float, int]] = []  # heap

    @property
    def n_waiting(self) -> int:
        """Requests in the waiting room."""
        return len(self._ring)

    @property
    def n_open(self) -> int:
        """Requests not yet answered."""
        return len(self._requests)

    @property
    def workers(self) -> list[int]:
        """Workers that are ready."""
        return list(self._hands)

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
        self.check_room()
        request = _Request(next(self._ids), n_tokens)
        self._requests[request.id] = self._ring[request.id] = request
        self._waiting_tokens += sum(n_tokens)
        if deadline != float("inf"):
            heapq.heappush(self._deadlines, (deadline, request.id))
        return request.id

    def check_room(self) -> None:
        """Raise `Overloaded` if the waiting room is full."""
        if self._limits.max_waiting is not None and len(self._ring) >= self._limits.max_waiting:
            raise Overloaded(self._limits.max_waiting)

    def cancel(self, id: int) -> None:
        """Forget a request: nothing of it runs any more, and what is running is thrown away. Unknown ids do nothing."""
        request = self._requests.pop(id, None)
        if request and self._ring.pop(id, None):
            self._waiting_tokens -= sum(n for n, _ in request.waiting)

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
        """Take a worker into service, with empty hands."""
        self._hands[worker] = {}

    def assign(self) -> Iterator[Assignment]:
        """Hand out batches for as long as a worker should get one."""
        while assignment := self._assign_one():
            yield assignment

    def complete(self, batch: int, worker: int) -> Answer:
        """Take a batch that was computed; a batch this worker does not hold means nothing."""
        done = self._hands.get(worker, {}).pop(batch, None)
        answer = Answer([], [])
        for row, text in enumerate(done.texts if done else ()):
            if request := self._requests.get(text.request):
                answer.rows.append((row, text))
                request.unanswered -= 1
                if request.unanswered == 0:
                    del self._requests[request.id]
                    answer.finished.append(request.id)
        return answer

    def fail(self, batch: int, worker: int) -> list[Failure]:
        """Take a batch that its worker, alive, could not compute.

        It runs again in two halves, until the text at fault is alone: that request fails.
        """
        failed = self._hands.get(worker, {}).pop(batch, None)
        return self._run_again(failed, n_deaths=2) if failed else []

    def worker_lost(self, worker: int) -> list[Failure]:
        """Take a worker out of service. What it held runs again on another.

        Its running batch is under suspicion. When a batch has lost two workers it runs in two halves, until the
        text at fault is alone: that request fails.
        """
        held = list(self._hands.pop(worker, {}).values())
        failures = self._run_again(held[0], n_deaths=held[0].deaths + 1) if held else []
        self._again.extend(held[1:])
        return failures

    def _run_again(self, batch: _Batch, n_deaths: int) -> list[Failure]:
        texts = [text for text in batch.texts if text.request in self._requests]
        if n_deaths < 2:
            self._again.append(_Batch(texts, n_deaths))
        elif len(texts) > 1:
            # One more death on a half splits it again: the worker's death has no other suspect left.
            half = len(texts) // 2
            self._again.extend((_Batch(texts[:half], 1), _Batch(texts[half:], 1)))
        elif texts:
            self.cancel(texts[0].request)
            return [Failure(*texts[0])]
        return []

    def _assign_one(self) -> Assignment | None:
        if not self._hands:
            return None
        n_held = min(map(len, self._hands.values()))
        if n_held >= self._limits.n_slots:
            return None
        free = [worker for worker, hand in self._hands.items() if len(hand) == n_held]
        batch = self._next_again()
        # A second batch is for a worker not to idle on a message. Anything less than a full one can wait for the
        # worker to be free, and grow meanwhile.
        if batch is None and self._ring and (n_held == 0 or self._waiting_tokens >= self._limits.max_batch_tokens):
            batch = _Batch(self._pick(len(free)), deaths=0)
        if batch is None:
            return None
        alone = not self._ring and not self._again and not any(self._hands.values())
        id = next(self._ids)
        self._hands[free[0]][id] = batch
        n_threads = self._limits.n_threads_alone if alone else self._limits.n_threads_busy
        return Assignment(id, free[0], batch.texts, n_threads)

    def _next_again(self) -> _Batch | None:
        while self._again:
            batch = self._again.popleft()
            texts = [text for text in batch.texts if text.request in self._requests]
            if texts:
                return _Batch(texts, batch.deaths)
        return None

    def _pick(self, n_free: int) -> list[Text]:
        """Take texts for one batch out of the ring: what is waiting is shared evenly by `n_free` workers."""
        most = self._limits.max_batch_tokens
        n_rounds = -(-self._waiting_tokens // (most * n_free))
        share = self._waiting_tokens / (n_rounds * n_free)
        texts: list[Text] = []
        n_tokens = 0
        for request in list(itertools.islice(self._ring.values(), LOOK_AHEAD)):
            n_before = len(texts)
            while len(texts) < self._limits.max_batch_size:
                # The first text goes whatever its length. Another may go over the share by half of itself, so that
                # rounding does not leave a crumb, but never over the limit.
                room = min(most - n_tokens, 2 * (share - n_tokens)) if texts else float("inf")
                taken = request.largest_within(room)
                if taken is None:
                    break
                texts.append(Text(request.id, taken[1]))
                n_tokens += taken[0]
            if len(texts) > n_before:
                del self._ring[request.id]
                if request.waiting:
                    self._ring[request.id] = request
            if n_tokens >= share or len(texts) == self._limits.max_batch_size:
                break
        self._waiting_tokens -= n_tokens
        return texts
