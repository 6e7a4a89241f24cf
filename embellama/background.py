"""`BackgroundQueue`: batches that are computed while nobody waits, each just as its caller put it together.

   add ──► a queue of each caller
             │ take: the caller who has had the fewest tokens gives his next batch
             ▼
           all texts of one request, which run together and with no others ──► `Scheduler`

A vector's last digits depend on the texts that it is computed beside. Work in the background is written to files, and
goes on after any end with the same bytes; so what it is computed beside must not be a matter of time.

Pure logic, like the scheduler: no clock, no I/O, no threads.
"""

from collections.abc import Sequence
from typing import NamedTuple

from embellama.caller_queue import Text


class BackgroundBatch(NamedTuple):
    """A request that waits, whose texts run together."""

    texts: list[Text]
    n_tokens: int


class BackgroundQueue:
    """Requests that run when no others wait."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[int, BackgroundBatch]] = {}  # of each caller with requests here
        self._callers: dict[int, str] = {}  # of those requests
        self._served: dict[str, float] = {}  # tokens that each of those callers has had

    def __len__(self) -> int:
        """Count the requests that wait."""
        return len(self._callers)

    def add(self, id: int, n_tokens: Sequence[int], caller: str = "") -> None:
        """Let request `id` wait, whose texts have so many tokens each."""
        if caller not in self._queues:
            # Time in which he asked for nothing is no credit.
            self._served[caller] = min(self._served.values(), default=0.0)
            self._queues[caller] = {}
        self._queues[caller][id] = BackgroundBatch([Text(id, i) for i in range(len(n_tokens))], sum(n_tokens))
        self._callers[id] = caller

    def remove(self, id: int) -> None:
        """Drop a request; one that does not wait here is ignored."""
        if (caller := self._callers.pop(id, None)) is not None:
            self._pop(caller, id)

    def take(self) -> BackgroundBatch | None:
        """Take out the next request; None if there is none."""
        if not self._queues:
            return None
        caller = min(self._queues, key=lambda name: self._served[name])
        id = next(iter(self._queues[caller]))
        self._served[caller] += self._queues[caller][id].n_tokens
        del self._callers[id]
        return self._pop(caller, id)

    def _pop(self, caller: str, id: int) -> BackgroundBatch:
        batch = self._queues[caller].pop(id)
        if not self._queues[caller]:
            del self._queues[caller], self._served[caller]
        return batch
