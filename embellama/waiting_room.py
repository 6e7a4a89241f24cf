"""`WaitingRoom`: all requests that wait for a worker, and whose turn it is.

   add ──► `CallerQueue` of the request's caller
             │ pick: the caller who has had the fewest tokens fills the batch first, then the next ones
             ▼
           texts of one batch ──► `Scheduler`

Callers who wait get equal parts of the workers' time, however many requests each has here (stride scheduling:
Waldspurger and Weihl 1995, "Stride Scheduling"). Mostly there is one, who need not say who he is.

Pure logic, like the scheduler: no clock, no I/O, no threads.
"""

from collections.abc import Sequence

from embellama.caller_queue import CallerQueue, PickedTexts
from embellama.errors import Overloaded

# After a small request came while long ones were waiting, or only other callers' requests, the next so many batches are
# small ones: an eighth of a full batch, of one caller and one kind of request, and no worker holds a second one. So the
# next such request waits an eighth as long for a worker. More batches keep this up for longer, at the price of about a
# sixth of the throughput.
SMALL_BATCHES = 64
SMALL_BATCH_SHARE = 8

# A request of at most a quarter of a full batch is a small one, for which batches are made small.
SMALL_REQUEST_SHARE = 4


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
        self._queues: dict[str, CallerQueue] = {}  # of callers with requests here
        self._callers: dict[int, str] = {}  # of those requests
        self._served: dict[str, float] = {}  # `CallerQueue.served` of callers who went while others waited
        self._n_tokens = 0
        # How many of the next batches are to be small, for the sake of requests beside long ones, and of other callers.
        self._n_small_batches = self._n_shared_batches = 0

    @property
    def n_requests(self) -> int:
        """Requests in the room."""
        return len(self._callers)

    @property
    def n_tokens(self) -> int:
        """Tokens in the room."""
        return self._n_tokens

    @property
    def wants_small_batches(self) -> bool:
        """Whether the next batch is to be a small one, so that the next small request need not wait for long."""
        if self._n_shared_batches:
            return True
        if not self._n_small_batches or not any(queue.long for queue in self._queues.values()):
            return False
        # With more short requests than fit a batch, small ones would only make all of them wait longer.
        return sum(queue.short_tokens for queue in self._queues.values()) <= self._max_batch_tokens

    def check_room(self, n_tokens: int = 0, caller: str = "", max_waiting: int | None = None) -> None:
        """Raise `Overloaded` if there is no room for a request of so many tokens; an empty room takes any.

        A full room still takes requests of a caller who has less than an equal part of it, so that nobody is kept out
        by another. With n callers it then holds at most 1 + 1/2 + … + 1/n times as much, or one request of
        each of them.

        Args:
            n_tokens: Tokens of the request.
            caller: Its caller.
            max_waiting: Most requests in the room, if fewer than it was made for.
        """
        most, most_tokens = self._max_waiting, self._max_waiting_tokens
        if most is not None and max_waiting is not None:
            most = min(most, max_waiting)
        if most is not None and self.n_requests >= most and self._n_of(caller)[0] >= most / self._n_callers(caller):
            raise Overloaded(f"{self.n_requests} requests are waiting already; {most} are the most allowed")
        if most_tokens is not None and self._n_tokens and self._n_tokens + n_tokens > most_tokens:
            n_own, n_callers = self._n_of(caller)[1], self._n_callers(caller)
            if n_callers == 1 or (n_own and n_own + n_tokens > most_tokens / n_callers):
                raise Overloaded(f"{self._n_tokens} tokens are waiting already; {most_tokens} are the most allowed")

    def add(self, id: int, n_tokens: Sequence[int], caller: str = "") -> None:
        """Let request `id` wait, whose texts have so many tokens each; raise `Overloaded` if there is no room."""
        total = sum(n_tokens)
        self.check_room(total, caller)
        is_small = total <= self._max_batch_tokens // SMALL_REQUEST_SHARE
        queue = self._queues.get(caller)
        if queue is None:
            others = [other.served for other in self._queues.values()]
            # Time in which he asked for nothing is no credit.
            served = max(self._served.pop(caller, 0.0), min(others, default=0.0))
            queue = self._queues[caller] = CallerQueue(self._max_batch_tokens, served)
            if others and is_small:
                self._n_shared_batches = SMALL_BATCHES
        queue.add(id, n_tokens)
        self._callers[id] = caller
        self._n_tokens += total
        if is_small and any(queue.long for queue in self._queues.values()):
            self._n_small_batches = SMALL_BATCHES

    def remove(self, id: int) -> None:
        """Drop a request's waiting texts; one that has none here is ignored."""
        if (caller := self._callers.pop(id, None)) is not None:
            self._n_tokens -= self._queues[caller].remove(id)
            self._forget_empty(caller)

    def tokens_before(self, n_tokens: int, caller: str = "") -> int:
        """Estimate how many tokens leave the room until a new request of so many has left it, its own included.

        Meanwhile, every other caller who waits has as many served as this one, if he has as many.
        """
        queue = self._queues.get(caller)
        own = queue.tokens_before(n_tokens) if queue else n_tokens
        n_others = self._n_tokens - (queue.n_tokens if queue else 0)
        return own + min((self._n_callers(caller) - 1) * own, n_others)

    def pick(self, n_workers: int, *, small: bool) -> PickedTexts:
        """Take out texts for one batch, of a room that is not empty.

        Args:
            n_workers: Workers that are free: each is to get an equal share of all that waits.
            small: Whether the batch is to be a small one.
        """
        most = max(1, self._max_batch_tokens // SMALL_BATCH_SHARE) if small else self._max_batch_tokens
        n_rounds = -(-self._n_tokens // (most * n_workers))
        share = self._n_tokens / (n_rounds * n_workers)
        batch = PickedTexts(most, self._max_batch_size, small)
        # Of two who had as much, the one with less to do: the other would fill the batch.
        for caller in sorted(self._queues, key=lambda name: (self._queues[name].served, self._queues[name].n_tokens)):
            for id in self._queues[caller].fill(batch, share, small=small):
                del self._callers[id]
            self._forget_empty(caller)
            if batch.n_tokens >= share or (small and batch.texts):
                break
        self._n_tokens -= batch.n_tokens
        self._n_small_batches = max(self._n_small_batches - 1, 0)
        self._n_shared_batches = max(self._n_shared_batches - 1, 0)
        return batch

    def _n_callers(self, caller: str) -> int:
        """Count the callers who wait, with this one."""
        return len(self._queues) + (caller not in self._queues)

    def _n_of(self, caller: str) -> tuple[int, int]:
        """Count a caller's requests here, and their tokens."""
        queue = self._queues.get(caller)
        return (queue.n_requests, queue.n_tokens) if queue else (0, 0)

    def _forget_empty(self, caller: str) -> None:
        if not self._queues[caller].n_requests:
            self._served[caller] = self._queues.pop(caller).served
            if not self._queues:
                self._served.clear()
