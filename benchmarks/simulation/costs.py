"""`Costs`: what is done costs so many seconds of a core, as it was measured."""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

# A front reads, checks and tokenizes a request for about so much of what it costs; the rest is its answer.
FRONT_IN = 0.6


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a core.

    Attributes:
        batches: Tokens of a batch, rising, and the seconds that one thread computes it for.
        spread: By what a batch's time differs from that, each as often as any other: ratios, of which the middle is 1.
        sleeping: Whether workers sleep for that long instead of computing.
        worker_batch_s: What a worker adds to each batch: to read and to write it.
        front_wake_s: A server's front, each time that it had nothing to do: with more to do, it costs less.
        front_request_s: The front, for each request.
        front_text_s: The front, for each text of one.
        balancer_wake_s, balancer_s: The balancer, as the front.
        client_wake_s, client_s: The client, as the front.
        speeds: As `Machine` takes them.
        ready_s: Seconds, on the clock, until a server that is started is ready.
    """

    batches: tuple[tuple[int, float], ...]
    spread: tuple[float, ...] = (1.0,)
    sleeping: bool = False
    worker_batch_s: float = 0.0
    front_wake_s: float = 0.0
    front_request_s: float = 0.0
    front_text_s: float = 0.0
    balancer_wake_s: float = 0.0
    balancer_s: float = 0.0
    client_wake_s: float = 0.0
    client_s: float = 0.0
    speeds: tuple[float, ...] = (1.0, 2.0)
    ready_s: float = 3.0

    def batch_s(self, n_tokens: int) -> float:
        """Return the seconds that a batch takes a worker: between two that were measured, in proportion."""
        return self.worker_batch_s + _between(self.batches, n_tokens)

    def with_sleepers(self, token_s: float) -> "Costs":
        """Return the costs where workers sleep for so many seconds for each token."""
        return msgspec.structs.replace(self, batches=((0, 0.0), (1, token_s)), spread=(1.0,), sleeping=True)

    def front_s(self, n_texts: int) -> float:
        """Return the seconds that a request of so many texts takes a front."""
        return self.front_request_s + self.front_text_s * n_texts


def _between(points: Sequence[tuple[int, float]], at: float) -> float:
    """Interpolate, and beyond the ends go on as the next two points do; of one point, the value is that."""
    if len(points) == 1:
        return points[0][1]
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(points) if at <= pair[1][0]), tuple(points[-2:]))
    return max(y0 + (y1 - y0) * (at - x0) / (x1 - x0), 0.0)
