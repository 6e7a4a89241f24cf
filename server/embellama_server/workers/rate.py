"""How fast workers computed lately, for deadlines and for the estimate a refused client gets."""

# How much of a batch's weight is left with each one that follows. Smaller, and requests are refused because the machine
# stood still for a second; larger, and it takes longer to notice a load that is slower.
DECAY = 0.98


class RecentRate:
    """Tokens and seconds of recent batches, in sums in which older batches count less and less.

    Sums, and no average of rates: of two replies read at once, the first took long and the second no time.
    """

    def __init__(self) -> None:
        self._n_tokens = self._n_possible = self._seconds = 0.0

    @property
    def s_a_token(self) -> float:
        """Seconds for a token; 0 before anything was computed."""
        return self._seconds / self._n_tokens if self._n_tokens else 0.0

    @property
    def possible_tokens_a_s(self) -> float:
        """Tokens a second that a worker computes when it has enough to do; 0 before anything was computed.

        Batches may have been far from full for lack of work, and a full one need take no longer: a large model takes
        as long for one token as for a hundred. By its tokens alone it would look too slow for any request but the
        smallest, which would then be all that it is given.
        """
        return self._n_possible / self._seconds if self._seconds else 0.0

    def add(self, n_tokens: int, n_possible: int, seconds: float) -> None:
        """Add a batch of `n_tokens`, which would have had `n_possible` with enough to do."""
        self._n_possible = DECAY * self._n_possible + n_possible
        self._n_tokens = DECAY * self._n_tokens + n_tokens
        self._seconds = DECAY * self._seconds + seconds
