"""`RecentRequests`: the requests of the last ten minutes, second by second, and the last that failed.

Metrics.request ── add ──► the second that runs ── over ──► `Second` ──► the last `N_SECONDS` of them

Nothing is done while no requests come: a second is closed by the first request after it, or by whoever looks.
"""

import time
from collections import deque
from typing import Any

import msgspec
import numpy as np

from embellama_server.telemetry.record import RequestRecord

# More is memory, 150 bytes each, and a longer way to a new tab.
N_SECONDS = 600
N_ERRORS = 50

PERCENTILES = (50, 95, 99)


class Second(msgspec.Struct, frozen=True, array_like=True):
    """The requests that ended in one second.

    Attributes:
        n_requests: All of them.
        n_failed: Those that were answered with an error.
        n_texts: Texts of the good ones.
        ms: Milliseconds that the good ones took, at each of `PERCENTILES`; None where there was none.
    """

    n_requests: int = 0
    n_failed: int = 0
    n_texts: int = 0
    ms: tuple[float, float, float] | None = None


class FailedRequest(msgspec.Struct, frozen=True):
    """A request that was answered with an error; no word of its texts.

    Attributes:
        time: When, in seconds since 1970.
        request_id: Its id, which may be its client's own.
        path: The path of its route.
        status: The status of the answer.
        code: The code of the error.
        model: The model's name; empty where none was found.
    """

    time: float
    request_id: str
    path: str
    status: int
    code: str
    model: str


class RecentRequests:
    """Counts requests by the second in which they ended, on `time.monotonic`'s clock.

    Attributes:
        errors: The last requests that failed, oldest first.
        n_errors: How many failed in all.
        n_closed: How many seconds were over when somebody looked last, or a request came.
    """

    def __init__(self, now: float | None = None):
        """Begin to count, at the time `now` or at once."""
        self._ends_at = int(time.monotonic() if now is None else now) + 1
        self._seconds: deque[Second] = deque([EMPTY] * N_SECONDS, N_SECONDS)
        self.n_closed = 0
        self._n_requests = self._n_failed = self._n_texts = 0
        self._took_s: list[float] = []
        self.errors: deque[FailedRequest] = deque(maxlen=N_ERRORS)
        self.n_errors = 0

    def add(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        times = record.times
        if times.ended >= self._ends_at:
            self._close(times.ended)
        self._n_requests += 1
        if record.status == 200:
            self._n_texts += record.n_texts
            self._took_s.append(times.ended - times.came)
        elif record.status:  # else its client hung up
            self._n_failed += 1
            self.n_errors += 1
            self.errors.append(
                FailedRequest(time.time(), record.request_id, record.path, record.status, record.error, record.model)
            )

    def seconds(self, now: float) -> list[Second]:
        """Return the last `N_SECONDS` that are over by `now`, oldest first; at the beginning some were empty."""
        self._close(now)
        return list(self._seconds)

    def _close(self, now: float) -> None:
        n_over = int(now) + 1 - self._ends_at
        if n_over <= 0:
            return
        self._seconds.append(self._second())
        self._seconds.extend([EMPTY] * min(n_over - 1, N_SECONDS))
        self.n_closed += n_over
        self._ends_at += n_over
        self._n_requests = self._n_failed = self._n_texts = 0
        self._took_s.clear()

    def _second(self) -> Second:
        if not self._n_requests:
            return EMPTY
        ms: Any = None
        if self._took_s:
            ms = tuple(round(1000 * float(value), 2) for value in np.percentile(self._took_s, PERCENTILES))
        return Second(self._n_requests, self._n_failed, self._n_texts, ms)


EMPTY = Second()
