"""Keep the texts of requests that wait for a worker, and pick those of the next batch.

   add ──► a queue of short requests and one of long ones; within each request, its texts by length
             │ pick: the request at the head gives as many texts as fit a batch, and the next ones fill it up. Long
             │       requests come in the order in which they would end if all were served in turns. Half a batch is
             │       for short ones, so that they need not wait for the long, and half for the long.
             ▼
           texts of one batch ──► `Scheduler`

A request is short if all of its texts fit one batch. Pure logic, like the scheduler: no clock, no I/O, no threads.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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


class WaitingRoom:
    """The queue before the workers: requests of which some texts are in no batch yet."""

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_batch_size: int,
        max_waiting: int | None = None,
        max_waiting_tokens: int | None = None,
    ):
        """Make an empty room.

        Args:
            max_batch_tokens: Most tokens in a batch.
            max_batch_size: Most texts in a batch.
            max_waiting: Most requests in the room; None for no limit.
            max_waiting_tokens: Most tokens in the room; None for no limit.
        """
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        # Both by request id, the next one first.
        self._short: dict[int, WaitingRequest] = {}
        self._long: dict[int, WaitingRequest] = {}
        # Tokens that each long request would have had by now if they were served in turns, of one token each. They are
        # served one after another instead, in the order in which they would then end: none ends later, most sooner.
        # In turns, a crowd of long requests ends together, after the deadline (Friedman and Henderson 2003, "Fairness
        # and efficiency in web server protocols").
        self._turns = 0.0
        self._short_first = True
        self._n_small_batches = 0  # how many of the next batches are to be small
        self._n_tokens = 0
        self._short_tokens = 0  # of those, the short requests'
        self._long_share = 1.0  # of the tokens in recent batches, while long requests waited: theirs, at least half

    @property
    def n_requests(self) -> int:
        """Requests in the room."""
        return len(self._short) + len(self._long)

    @property
    def n_tokens(self) -> int:
        """Tokens in the room."""
        return self._n_tokens

    @property
    def wants_small_batches(self) -> bool:
        """Whether the next batch is to be a small one, so that the next short request need not wait for long."""
        # With more short requests than fit a batch, small ones would only make all of them wait longer.
        return self._n_small_batches > 0 and bool(self._long) and self._short_tokens <= self._max_batch_tokens

    def check_room(self, n_tokens: int = 0) -> None:
        """Raise `Overloaded` if there is no room for a request of so many tokens; an empty room takes any."""
        most, most_tokens = self._max_waiting, self._max_waiting_tokens
        if most is not None and self.n_requests >= most:
            raise Overloaded(f"{most} requests are waiting already, the most allowed")
        if most_tokens is not None and self._n_tokens and self._n_tokens + n_tokens > most_tokens:
            raise Overloaded(f"{self._n_tokens} tokens are waiting already; {most_tokens} are the most allowed")

    def add(self, id: int, n_tokens: Sequence[int]) -> None:
        """Let request `id` wait, whose texts have so many tokens each; raise `Overloaded` if there is no room."""
        total = sum(n_tokens)
        self.check_room(total)
        request = WaitingRequest(id, n_tokens)
        if total <= self._max_batch_tokens:
            self._short[id] = request
            self._short_tokens += total
        else:
            request.turns = self._turns + total
            self._long[id] = request
            self._long = dict(sorted(self._long.items(), key=lambda item: item[1].turns))
        self._n_tokens += total
        if self._long and total <= self._max_batch_tokens // SMALL_REQUEST_SHARE:
            self._n_small_batches = SMALL_BATCHES

    def remove(self, id: int) -> None:
        """Drop a request's waiting texts; one that has none here is ignored."""
        if request := self._short.pop(id, None):
            n_tokens = sum(n for n, _ in request.texts)
            self._short_tokens -= n_tokens
            self._n_tokens -= n_tokens
        elif request := self._long.pop(id, None):
            self._n_tokens -= sum(n for n, _ in request.texts)

    def tokens_before(self, n_tokens: int) -> int:
        """Estimate how many tokens leave the room until a new request of so many has left it, its own included.

        As if more requests kept coming: a long one is done no later than if all took turns, and gets as much of the
        batches as long ones did lately; a short one gets half of them while there are long ones.
        """
        if n_tokens <= self._max_batch_tokens:
            return (self._short_tokens + n_tokens) * (2 if self._long else 1)
        turns = min((len(self._long) + 1) * n_tokens, self._n_tokens + n_tokens)
        return int(turns / self._long_share)

    def pick(self, n_workers: int, *, small: bool) -> PickedTexts:
        """Take out texts for one batch, of a room that is not empty.

        Args:
            n_workers: Workers that are free: each is to get an equal share of all that waits.
            small: Whether the batch is to be a small one.
        """
        most = max(1, self._max_batch_tokens // SMALL_BATCH_SHARE) if small else self._max_batch_tokens
        n_rounds = -(-self._n_tokens // (most * n_workers))
        share = self._n_tokens / (n_rounds * n_workers)
        had_long, n_short_before = bool(self._long), self._short_tokens
        batch = PickedTexts(most, self._max_batch_size, small)
        # In turns, so that neither short requests nor long ones can keep the others out.
        first, second = (self._short, self._long) if self._short_first else (self._long, self._short)
        if first and second:
            self._short_first = not self._short_first
            # In a small batch, short requests are not to wait for a long one's texts.
            self._take(batch, first, share if small else share / 2)
        else:
            self._short_first = True
        if not small or not batch.texts:
            self._take(batch, second, share)
            self._take(batch, first, share)
        self._n_tokens -= batch.n_tokens
        self._n_small_batches = max(self._n_small_batches - 1, 0)
        if had_long:
            long_share = max(0.5, 1 - (n_short_before - self._short_tokens) / batch.n_tokens)
            self._long_share += (long_share - self._long_share) / RECENT_BATCHES
        return batch

    def _take(self, batch: PickedTexts, requests: dict[int, WaitingRequest], share: float) -> None:
        """Move texts of `requests`, one of the two queues, to the batch until it has `share` tokens."""
        n_requests, n_before = len(requests), batch.n_tokens
        if not n_requests:
            return
        for id in batch.take(itertools.islice(requests.values(), LOOK_AHEAD), share):
            del requests[id]
        if requests is self._short:
            self._short_tokens -= batch.n_tokens - n_before
        else:
            self._turns += (batch.n_tokens - n_before) / n_requests
