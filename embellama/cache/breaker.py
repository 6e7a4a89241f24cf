"""`Breaker`: whether a service that does not answer is to be asked again. Pure logic: time is handed in."""

# How long a service that failed is left alone at first, and at most; each failure doubles it. Less would ask a dead
# one often, more would leave one that is back unused.
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0

# So many answers in a row that came too late to be of use count as a failure; one may be the machine's fault.
MAX_LATE = 5


class Breaker:
    """Says when to leave a failing service alone."""

    def __init__(self, late_s: float):
        """Start with a service that works; an answer that takes more than `late_s` is a late one."""
        self._late_s = late_s
        self._pause_s = 0.0  # 0 while it works
        self._until = 0.0
        self._n_late = 0

    @property
    def is_open(self) -> bool:
        """Whether the service failed when it was asked last."""
        return self._pause_s > 0

    def allows(self, now: float) -> bool:
        """Tell whether to ask the service."""
        return now >= self._until

    def answered(self, took_s: float, now: float) -> None:
        """Note an answer."""
        self._n_late = self._n_late + 1 if took_s > self._late_s else 0
        if self._n_late >= MAX_LATE:
            self.failed(now)
        elif not self._n_late:
            self._pause_s = 0.0

    def failed(self, now: float) -> None:
        """Note that no answer came, or an error."""
        self._n_late = 0
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), MAX_PAUSE_S)
        self._until = now + self._pause_s
