"""`RateLimits`: requests are sent no faster than rates allow.

a request's characters ── estimated tokens ──► RateLimits.wait ──► it may be sent
its answer's tokens ── RateLimits.counted ──► the next one waits for what was estimated too low, or for less

Nobody knows a request's tokens before its server has counted them, so each is estimated by what those before had.
"""

import asyncio
from collections.abc import Sequence

from aiolimiter import AsyncLimiter

from embellama.remote.rate import Rate

# Beside the one that is due, what may come at once of that which came too late: a timer is late by milliseconds, and
# without this each delay would lower the rate. More would let bursts through.
SLACK = 0.5
SLACK_S = 0.02

# Tokens are taken in steps of so many seconds' worth, for which a bucket must have room beside the slack.
STEP_S = 0.01

# Fewer than most texts have: before any token was counted, requests are taken for longer than they are.
FIRST_CHARACTERS_A_TOKEN = 3.0


class RateLimits:
    """Lets requests pass in time; used on one event loop."""

    def __init__(self, limits: Sequence[str]):
        """Prepare for limits as `Rate.parse` reads them."""
        rates = [Rate.parse(limit) for limit in limits]
        self._requests = [_Bucket(rate) for rate in rates if rate.unit == "requests"]
        self._tokens = [_Bucket(rate) for rate in rates if rate.unit == "tokens"]
        self._n_characters = self._n_tokens = 0

    async def wait(self, n_characters: int) -> float:
        """Wait until a request may be sent, and return for how many tokens that is."""
        for bucket in self._requests:
            await bucket.take(1)
        n_tokens = self._estimate(n_characters)
        for bucket in self._tokens:
            await bucket.take(n_tokens)
        return n_tokens

    def counted(self, n_characters: int, estimated: float, n_tokens: int) -> None:
        """Note how many tokens a server counted in a request that `wait` let pass for `estimated`."""
        self._n_characters += n_characters
        self._n_tokens += n_tokens
        for bucket in self._tokens:
            bucket.correct(n_tokens - estimated)

    def _estimate(self, n_characters: int) -> float:
        if self._n_tokens:
            return n_characters * self._n_tokens / self._n_characters
        return n_characters / FIRST_CHARACTERS_A_TOKEN


class _Bucket:
    """One limit: a bucket that holds little, so that there are no bursts, however long the time is."""

    def __init__(self, rate: Rate):
        a_second = rate.amount / rate.seconds
        self._step = 1.0 if rate.unit == "requests" else max(1.0, STEP_S * a_second)
        room = self._step + max(SLACK, SLACK_S * a_second)
        self._limiter = AsyncLimiter(room, room / a_second)
        self._turn = asyncio.Lock()  # the limiter serves small amounts first, and large ones would wait for ever
        self._owed = 0.0

    async def take(self, amount: float) -> None:
        """Wait until so much may pass."""
        async with self._turn:
            self._owed += amount
            while self._owed > 0:
                step = min(self._owed, self._step)
                await self._limiter.acquire(step)
                self._owed -= step

    def correct(self, amount: float) -> None:
        """Have the next one wait for more, or for less."""
        self._owed += amount
