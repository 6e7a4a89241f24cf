"""Who asks: clients that wait for their answers, or requests that come whatever becomes of those before.

Load ── start ──► Balancer.submit ──► answered ──► Load.results
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.simulation.balancer import Balancer
from benchmarks.simulation.clock import Clock
from benchmarks.simulation.machine import Process

#: Draws the tokens of each text of a request.
Draw = Callable[[random.Random], Sequence[int]]


class Load:
    """Requests and what became of them.

    Attributes:
        latencies: Seconds of each request that was answered with vectors, in the order of their ends.
        n_texts: Texts of those.
        refused: Requests that ended in another way, by how.
        n_sent: Requests that were sent.
        open_s: The number of open requests, summed over time.
    """

    def __init__(self, clock: Clock, balancer: Balancer, draw: Draw, seed: int):
        self._clock, self._balancer, self._draw = clock, balancer, draw
        self._random = random.Random(seed)
        self.latencies: list[float] = []
        self.n_texts = self.n_sent = 0
        self.refused: dict[str, int] = {}
        self.open_s = 0.0

    @property
    def n_ended(self) -> int:
        """Requests that have ended, in whatever way."""
        return len(self.latencies) + sum(self.refused.values())

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies, in milliseconds; NaN if nothing was answered."""
        return float(np.percentile(self.latencies, percent)) * 1000 if self.latencies else math.nan

    def _send(self, ended: Callable[[], None] = lambda: None) -> None:
        started, n_tokens = self._clock.now, self._draw(self._random)
        self.n_sent += 1

        def answered(how: str) -> None:
            took = self._clock.now - started
            self.open_s += took
            if how == "ok":
                self.latencies.append(took)
                self.n_texts += len(n_tokens)
            else:
                self.refused[how] = self.refused.get(how, 0) + 1
            ended()

        self._balancer.submit(n_tokens, answered)


class Clients(Load):
    """So many clients, each of which waits for its answer before it asks again."""

    def start(self, n_clients: int, end: float, process: Process | None = None, request_s: float = 0.0) -> None:
        """Let them begin.

        Args:
            n_clients: How many.
            end: When they send no more.
            process: What does their own work, for all of them; None if that takes no time.
            request_s: Seconds of it for a request.
        """

        def one() -> None:
            if self._clock.now >= end:
                return
            if process and request_s:
                process.do(request_s, lambda: self._send(one))
            else:
                self._send(lambda: self._clock.after(0, one))

        for _ in range(n_clients):
            self._clock.after(0, one)


class Arrivals(Load):
    """Requests that come at random, at a rate that may change: a Poisson process."""

    def start(self, rate: Callable[[float], float], most: float, end: float) -> None:
        """Let them come.

        Args:
            rate: Requests a second at a time, never above `most`.
            most: The highest rate.
            end: When no more of them come.
        """

        def come() -> None:
            if self._clock.now >= end:
                return
            if self._random.random() * most <= rate(self._clock.now):  # thinning: Lewis and Shedler, 1979
                self._send()
            self._clock.after(self._random.expovariate(most), come)

        self._clock.after(self._random.expovariate(most), come)


def diurnal(mean: float, swing: float, day_s: float) -> Callable[[float], float]:
    """Return a rate that rises and falls by `swing` of its mean once a day; it begins at the mean and rises."""
    return lambda now: mean * (1 + swing * math.sin(2 * math.pi * now / day_s))
