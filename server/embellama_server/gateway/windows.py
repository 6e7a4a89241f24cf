"""`MemoryStorage`: what was spent in sliding windows, in memory; the part of `limits`' storages that meters use.

`limits` has one too, but for asyncio it starts a task with each charge, which looks through all keys: with three limits
that made a request 90 µs dearer, and with more keys much more.
"""

import time
from typing import NamedTuple


class _Counts(NamedTuple):
    """What was spent in a window, and in the one before; windows are numbered from the epoch."""

    window: int
    current: int
    previous: int


class MemoryStorage:
    """Counts by key; used on the event loop."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Charge an amount in windows of `expiry` seconds, if the limit allows it; return whether it did."""
        counts, since_s = self._now(key, expiry)
        if int(counts.previous * (expiry - since_s) / expiry) + counts.current + amount > limit:
            return False
        self._counts[key] = counts._replace(current=counts.current + amount)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return what was spent in the window before and in this one, each with the seconds until it counts no more."""
        counts, since_s = self._now(key, expiry)
        previous_left_s = expiry - since_s if counts.previous else 0.0
        return counts.previous, previous_left_s, counts.current, 2 * expiry - since_s

    def _now(self, key: str, expiry: int) -> tuple[_Counts, float]:
        """Return the counts of the window that is now, and how long it has lasted, in seconds."""
        window, since_s = divmod(time.time(), expiry)
        counts = self._counts.get(key, _Counts(int(window), 0, 0))
        passed = int(window) - counts.window
        if passed < 0:  # the clock was set back
            return counts, 0.0
        if passed:
            counts = _Counts(int(window), 0, counts.current if passed == 1 else 0)
        return counts, since_s
