"""Busy time and memory of a pool's workers, by their places.

Each worker process takes the lowest free place, so that a place's measurements go on when its worker is replaced.
"""

import itertools
from collections.abc import Collection

from embellama.backend import WorkerState
from embellama_server.workers.record import WorkerRecord


class Places:
    """Busy time of every place that a worker ever took."""

    def __init__(self) -> None:
        self._busy_s: list[float] = []

    def lowest_free(self, workers: Collection[WorkerRecord]) -> int:
        """Return the lowest place that none of `workers` has."""
        taken = {worker.place for worker in workers}
        place = next(place for place in itertools.count() if place not in taken)
        if place == len(self._busy_s):
            self._busy_s.append(0.0)
        return place

    def add_busy(self, place: int, seconds: float) -> None:
        """Count the time that a worker had a batch."""
        self._busy_s[place] += seconds

    def states(self, workers: Collection[WorkerRecord]) -> list[WorkerState]:
        """Return busy time and memory of each place, of which `workers` have some now."""
        processes = {worker.place: worker.process for worker in workers}
        return [
            WorkerState(busy_s, processes[place].memory, processes[place].resident)
            if place in processes
            else WorkerState(busy_s, 0, 0)
            for place, busy_s in enumerate(self._busy_s)
        ]
