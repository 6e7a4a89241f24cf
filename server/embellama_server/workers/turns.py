"""`BackgroundTurns`: when work in the background may run, so that nobody who waits for an answer notices it.

Pure logic: the time is handed in, in seconds, on any clock.
"""

# So long after the last request nothing runs in the background. A batch of it would hold up the next request by what it
# still takes, up to several times a lone text's own time; of requests that come at random, five a second or more, fewer
# than one in a hundred comes after such a pause (e⁻⁵ = 0.7%). A longer one leaves more of the cores idle.
QUIET_S = 1.0

# Whatever the requests, a worker that is free takes a batch in the background after so long. Beside requests that never
# pause, 50,000 lines are done in half a day, and one request in 300 may find a worker taken.
TURN_S = 10.0


class BackgroundTurns:
    """Decides whether batches in the background may run."""

    def __init__(self) -> None:
        self._n_open = 0
        self._quiet_since = self._last_turn = float("-inf")

    def request_came(self) -> None:
        """Take note of a request that somebody waits for."""
        self._n_open += 1

    def request_ended(self, now: float) -> None:
        """Take note that one was answered, or given up."""
        self._n_open -= 1
        self._quiet_since = now

    def may_run(self, now: float) -> bool:
        """Tell whether batches in the background may run now."""
        return (not self._n_open and now >= self._quiet_since + QUIET_S) or now >= self._last_turn + TURN_S

    def ran(self, now: float) -> None:
        """Take note that a batch ran in the background."""
        self._last_turn = now
