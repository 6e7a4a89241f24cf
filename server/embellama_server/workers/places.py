"""Busy time and memory of a pool's workers, by their places.

Each worker process takes the lowest free place, so that a place's measurements go on when its worker is replaced.
"""

import itertools
from collections.abc import Collection

from embellama.backend import WorkerState
from embellama_server.workers.record import WorkerRecord


class Places:
    """Busy time of every place that a worker ever took, and how many took it."""

    def __init__(self) -> None:
        self._busy_s: list[float] = []
        self._n_started: list[int] = []

    def take(self, workers: Collection[WorkerRecord]) -> int:
        """Return the lowest place that none of `workers` has, for one that is started now."""
        taken = {worker.place for worker in workers}
        place = next(place for place in itertools.count() if place not in taken)
        if place == len(self._busy_s):
            self._busy_s.append(0.0)
            self._n_started.append(0)
        self._n_started[place] += 1
        return place

    def add_busy(self, place: int, seconds: float) -> None:
        """Count the time that a worker had a batch."""
        self._busy_s[place] += seconds

    def states(self, workers: Collection[WorkerRecord], now: float) -> list[WorkerState]:
        """Return the use of each place, of which `workers` have some at the time `now`."""
        records = {worker.place: worker for worker in workers}
        return [self._state(place, records.get(place), now) for place in range(len(self._busy_s))]

    def _state(self, place: int, record: WorkerRecord | None, now: float) -> WorkerState:
        busy_s, n_restarts = self._busy_s[place], max(self._n_started[place] - 1, 0)
        if record is None:
            return WorkerState(busy_s, 0, 0, n_restarts=n_restarts)
        process = record.process
        return WorkerState(
            busy_s,
            process.memory,
            process.resident,
            record.state,
            process.pid or 0,
            n_restarts,
            record.computing_s(now),
        )
