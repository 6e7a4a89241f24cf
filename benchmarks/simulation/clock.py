"""`Clock`: simulated time, and what happens in it."""

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    """Runs actions in the order of their times; of equal times, in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Action]] = []  # heap
        self._numbers = itertools.count()

    def after(self, seconds: float, action: Action) -> None:
        """Plan an action in so many seconds, at least 0."""
        assert seconds >= 0
        heapq.heappush(self._planned, (self.now + seconds, next(self._numbers), action))

    def run(self, until: float = float("inf")) -> None:
        """Let time pass until then, or until nothing more is planned."""
        while self._planned and self._planned[0][0] <= until:
            self.now, _, action = heapq.heappop(self._planned)
            action()
        if until < float("inf"):
            self.now = until
