"""Decide how long to wait before a worker is started again.

One that served is replaced at once. Pauses grow while workers die without having computed anything, and after too many
deaths in a minute none is started for a minute. No clock and no processes in here: the supervisor hands in times.
"""

import logging
from collections import deque

logger = logging.getLogger("embellama.supervisor")

# Pauses before a worker is started again, by how many before it died without having computed a batch. One that served
# is replaced at once: whatever ended it, starting again is likely to work.
RESTART_PAUSE_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)

# More deaths than this within a minute, and none is started for a minute: something is wrong that starting does not
# mend. Of two workers that are killed from outside every other second, 30 die.
MAX_DEATHS_A_MINUTE = 60


def pause_s(n_fruitless: int) -> float:
    """Return the pause after so many starts in a row that came to nothing."""
    return RESTART_PAUSE_S[min(n_fruitless, len(RESTART_PAUSE_S) - 1)]


class Restarts:
    """Deaths that were followed by a new start.

    Attributes:
        n: How many there were.
    """

    def __init__(self) -> None:
        self.n = 0
        self._deaths: deque[float] = deque()  # times, of the last minute

    def after_death(self, now: float, n_fruitless: int, reason: str, trouble: str) -> tuple[float, str]:
        """Count a death.

        Args:
            now: When it was, in seconds on the caller's clock.
            n_fruitless: Workers in a row that died without having computed anything, this one included.
            reason: Why this one died.
            trouble: What was wrong with the workers before, or "".

        Returns:
            Seconds to wait before another worker is started, and what is wrong with the workers now, or "".
        """
        self.n += 1
        self._deaths.append(now)
        while self._deaths[0] < now - 60:
            self._deaths.popleft()
        pause = pause_s(n_fruitless)
        if len(self._deaths) > MAX_DEATHS_A_MINUTE:
            pause = 60.0
            trouble = f"{len(self._deaths)} workers died within a minute, the last because {reason}"
            logger.error("%s; none is started for a minute", trouble)
        if n_fruitless > 1 and not trouble:
            trouble = f"{n_fruitless} workers in a row died before they computed anything, the last: {reason}"
        return pause, trouble
