"""`CallerQueue`: the requests of one caller that wait for a worker, and which of their texts go into the next batch.

   add ──► a queue of short requests and one of long ones; within each request, its texts by length
             │ fill: the request at the head gives as many texts as fit a batch, and the next ones fill it up. Long
             │       requests come in the order in which they would end if all were served in turns. Half a batch is
             │       for short ones, so that they need not wait for the long, and half for the long.
             ▼
           texts in a batch ──► `WaitingRoom`

A request is short if all of its texts fit one batch. Pure logic, like the scheduler: no clock, no I/O, no threads.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# How many requests a batch is filled from. Fewer could miss a text that fits; more costs the caller time, about 0.5 µs
# each, in which no batch is sent.
LOOK_AHEAD = 64

# Batches by which the share of long requests is averaged. Fewer, and it follows the moment; more, and it is late.
RECENT_BATCHES = 64


class Text(NamedTuple):
    """One text of one request."""

    request: int
    position: int  # in the caller's list


class WaitingRequest:
    """A request with texts that wait.

    Attributes:
        id: The request's number.
        turns: When it would end if all long requests were served in turns, see `WaitingRoom._turns`.
        texts: Its waiting texts, shortest first, as (n_tokens, position).
    """

    def __init__(self, id: int, n_tokens: Sequence[int]):
        self.id = id
        self.turns = 0.0
        self.texts = sorted((n, position) for position, n in enumerate(n_tokens))

    def largest_within(self, room: float) -> tuple[int, int] | None:
        """Take out the longest waiting text of at most `room` tokens, as (n_tokens, position)."""
        place = bisect.bisect_right(self.texts, (room, float("inf")))
        return self.texts.pop(place - 1) if place else None


class PickedTexts:
    """Texts picked for one batch.

    Attributes:
        texts: The texts, in the order of their rows.
        n_tokens: Tokens in all of them.
    """

    __slots__ = ("_max_size", "_max_tokens", "_small", "n_tokens", "texts")

    def __init__(self, max_tokens: int, max_size: int, small: bool):
        self._max_tokens, self._max_size, self._small = max_tokens, max_size, small
        self.texts: list[Text] = []
        self.n_tokens = 0

    def take(self, requests: Iterable[WaitingRequest], share: float) -> list[int]:
        """Take texts out of requests, in order, until there are `share` tokens; return the requests left without."""
        texts, n_tokens, most, max_size = self.texts, self.n_tokens, self._max_tokens, self._max_size
        emptied = []
        for request in requests:
            if n_tokens >= share or len(texts) == max_size:
                break
            while len(texts) < max_size:
                # The first text goes whatever its length, but into a small batch one that fits if there is any. Another
                # may go over the share by half of itself, so that rounding does not leave a crumb, but never over the
                # limit.
                room = min(most - n_tokens, 2 * (share - n_tokens)) if texts else most if self._small else float("inf")
                taken = request.largest_within(room)
                if taken is None:
                    if texts or not request.texts:
                        break
                    taken = request.texts.pop(0)
                texts.append(Text(request.id, taken[1]))
                n_tokens += taken[0]
            if not request.texts:
                emptied.append(request.id)
        self.n_tokens = n_tokens
        return emptied


class CallerQueue:
    """The waiting requests of one caller.

    Attributes:
        short: Those whose texts all fit one batch, by id, the next one first.
        long: The others, likewise.
        n_tokens: Tokens of all their waiting texts.
        short_tokens: Those of the short ones.
        served: Tokens that the caller has had, as `WaitingRoom` compares them.
    """

    def __init__(self, max_batch_tokens: int, served: float):
        """Make an empty queue, for batches of at most so many tokens."""
        self._max_batch_tokens = max_batch_tokens
        self.served = served
        self.short: dict[int, WaitingRequest] = {}
        self.long: dict[int, WaitingRequest] = {}
        self.n_tokens = self.short_tokens = 0
        # Tokens that each long request would have had by now if they were served in turns, of one token each. They are
        # served one after another instead, in the order in which they would then end: none ends later, most sooner.
        # In turns, a crowd of long requests ends together, after the deadline (Friedman and Henderson 2003, "Fairness
        # and efficiency in web server protocols").
        self._turns = 0.0
        self._short_first = True
        self._long_share = 1.0  # of the tokens in recent batches, while long requests waited: theirs, at least half

    @property
    def n_requests(self) -> int:
        """Requests that wait."""
        return len(self.short) + len(self.long)

    def add(self, id: int, n_tokens: Sequence[int]) -> None:
        """Let request `id` wait, whose texts have so many tokens each."""
        total = sum(n_tokens)
        request = WaitingRequest(id, n_tokens)
        if total <= self._max_batch_tokens:
            self.short[id] = request
            self.short_tokens += total
        else:
            request.turns = self._turns + total
            self.long[id] = request
            self.long = dict(sorted(self.long.items(), key=lambda item: item[1].turns))
        self.n_tokens += total

    def remove(self, id: int) -> int:
        """Drop a request's waiting texts; return how many tokens they have."""
        requests = self.short if id in self.short else self.long
        n_tokens = sum(n for n, _ in requests.pop(id).texts)
        if requests is self.short:
            self.short_tokens -= n_tokens
        self.n_tokens -= n_tokens
        return n_tokens

    def tokens_before(self, n_tokens: int) -> int:
        """Estimate how many of the caller's tokens are served until a new request of so many is, its own included.

        As if more requests kept coming: a long one is done no later than if all took turns, and gets as much of the
        batches as long ones did lately; a short one gets half of them while there are long ones.
        """
        if n_tokens <= self._max_batch_tokens:
            return (self.short_tokens + n_tokens) * (2 if self.long else 1)
        turns = min((len(self.long) + 1) * n_tokens, self.n_tokens + n_tokens)
        return int(turns / self._long_share)

    def fill(self, batch: PickedTexts, share: float, *, small: bool) -> list[int]:
        """Move texts to a batch until it has `share` tokens; return the requests that are left without.

        Args:
            batch: The batch, which may have texts of other callers.
            share: Tokens that it is to have.
            small: Whether it is a small one, in which short requests are not to wait for a long one's texts.
        """
        had_long, n_short_before, n_before = bool(self.long), self.short_tokens, batch.n_tokens
        emptied: list[int] = []
        # In turns, so that neither short requests nor long ones can keep the others out.
        first, second = (self.short, self.long) if self._short_first else (self.long, self.short)
        if first and second:
            self._short_first = not self._short_first
            emptied += self._take(batch, first, share if small else (n_before + share) / 2)
        else:
            self._short_first = True
        if not small or batch.n_tokens == n_before:
            emptied += self._take(batch, second, share)
            emptied += self._take(batch, first, share)
        n_taken = batch.n_tokens - n_before
        self.n_tokens -= n_taken
        self.served += n_taken
        if had_long and n_taken:
            long_share = max(0.5, 1 - (n_short_before - self.short_tokens) / n_taken)
            self._long_share += (long_share - self._long_share) / RECENT_BATCHES
        return emptied

    def _take(self, batch: PickedTexts, requests: dict[int, WaitingRequest], share: float) -> list[int]:
        """Move texts of `requests`, one of the two queues, to the batch; return the requests that are left without."""
        n_requests, n_before = len(requests), batch.n_tokens
        if not n_requests:
            return []
        emptied = batch.take(itertools.islice(requests.values(), LOOK_AHEAD), share)
        for id in emptied:
            del requests[id]
        if requests is self.short:
            self.short_tokens -= batch.n_tokens - n_before
        else:
            self._turns += (batch.n_tokens - n_before) / n_requests
        return emptied
