"""What keys have spent of their limits: in memory, or with the package `limits` in a Redis that servers share.

Account.open, Account.charge_request, Account.charge_tokens ──► Meter.spend ──► LimitStore ──► memory, or Redis

A window slides: what was spent in the minute of the clock before counts by the part of it that is less than a minute
ago. Checking and charging are one step, in Redis too, and what is refused is not charged.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import RedisStorage

from embellama.errors import ConfigError, Unavailable
from embellama.keys import KeyEntry
from embellama_server.gateway.windows import MemoryStorage
from embellama_server.problems import RateLimited

logger = logging.getLogger("embellama.gateway")

# Longest that a request waits for Redis each time it is charged. It answers in a fraction of a millisecond; a shorter
# bound would take a moment's stall for its end.
CALL_S = 0.25

# Redis is left alone for so long after it did not answer, so that requests do not wait for it one after another.
REST_S = 1.0


# What is left of a limit is asked for so often at most; between, what is charged here is subtracted. More often costs
# as much as charging does, less often shows less of what other servers charge.
FRESH_S = 1.0


class Window(NamedTuple):
    """What was spent lately of one limit.

    previous: Spent in the window before the current one.
    previous_left_s: Seconds until that counts no more.
    current: Spent in the current window.
    current_left_s: Seconds until that counts no more: a whole window longer than the current one lasts.
    length_s: Length of a window.
    """

    previous: int
    previous_left_s: float
    current: int
    current_left_s: float
    length_s: int

    @property
    def spent(self) -> int:
        """What counts now."""
        return math.floor(self.previous * self.previous_left_s / self.length_s) + self.current

    @property
    def reset_s(self) -> float:
        """Seconds until nothing counts any more, if nothing more is spent."""
        return self.current_left_s if self.current else self.previous_left_s if self.previous else 0.0

    def wait_s(self, cost: int, limit: int) -> float:
        """Return in how many seconds `cost` is left of `limit`, if nothing more is spent; infinite if it never is."""
        left = limit - cost
        if left < 0:
            return math.inf
        if self.spent <= left:
            return 0.0
        if self.current <= left:
            return self.previous_left_s - (left - self.current) * self.length_s / self.previous
        # Once the current window has ended, its part that still counts shrinks.
        return self.current_left_s - self.length_s * left / self.current


class LimitStore:
    """Where it is kept what was spent: in memory, or in Redis.

    Attributes:
        is_remote: Whether it is Redis, which has to be waited for.
    """

    def __init__(self, redis_url: str = "", *, fails_open: bool = True):
        """Prepare to keep accounts; Redis need not be there yet.

        Args:
            redis_url: ``redis://host:6379/0``, ``rediss://…`` or ``unix://…``; "" keeps them in memory.
            fails_open: Whether nothing is limited while Redis does not answer; else every charge raises.

        Raises:
            ConfigError: The URL is wrong, or the package `redis` is missing.
        """
        redis = _redis_storage(redis_url) if redis_url else None
        self._storage: Any = redis or MemoryStorage()
        store_errors: Any = redis.base_exceptions if redis else ()
        self._errors: tuple[type[Exception], ...] = (*store_errors, OSError, TimeoutError)
        self.is_remote = bool(redis_url)
        self._fails_open = fails_open
        self._rests_until = 0.0
        self._trouble = ""

    async def spend(self, key: str, item: RateLimitItem, cost: int) -> bool | None:
        """Charge a cost to what is kept under a key, if the limit allows it.

        Returns:
            Whether it did; None where Redis is gone and nothing is limited.

        Raises:
            Unavailable: Redis is gone, and what cannot be charged is refused.
        """
        ask = self._storage.acquire_sliding_window_entry
        return await self._answer(ask, key, item.amount, item.get_expiry(), cost)  # type: ignore[no-any-return]

    async def window(self, key: str, item: RateLimitItem) -> Window | None:
        """Return what was spent lately of what is kept under a key; None, and raises, as `spend` does."""
        length_s = item.get_expiry()
        found = await self._answer(self._storage.get_sliding_window, key, length_s)
        if found is None:
            return None
        previous, previous_left_s, current, current_left_s = found
        return Window(previous, previous_left_s, current, current_left_s, length_s)

    async def _answer(self, ask: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Ask where it is kept."""
        if not self.is_remote:
            return await ask(*arguments)
        if time.monotonic() >= self._rests_until:
            try:
                async with asyncio.timeout(CALL_S):
                    answer = await ask(*arguments)
            except self._errors as error:
                self._rests_until = time.monotonic() + REST_S
                self._tell(str(error) or "it is silent")
            else:
                self._tell("")
                return answer
        if not self._fails_open:
            raise Unavailable("limits cannot be checked now: their store does not answer")
        return None

    def _tell(self, trouble: str) -> None:
        if trouble and not self._trouble:
            what = "nothing is limited" if self._fails_open else "requests are refused"
            logger.warning("redis does not answer, and %s meanwhile: %s", what, trouble)
        if self._trouble and not trouble:
            logger.info("redis answers again: limits hold")
        self._trouble = trouble


def _redis_storage(url: str) -> RedisStorage:
    try:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigError(
            "redis_url is set, but the package redis is not installed: pip install 'embellama[redis]'"
        ) from None
    scheme = "async+redis+unix" + url.removeprefix("unix") if url.startswith("unix:") else f"async+{url}"
    options: dict[str, Any] = {
        "socket_timeout": CALL_S,
        "socket_connect_timeout": CALL_S,
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        return RedisStorage(scheme, implementation="redispy", key_prefix="embellama:limits", **options)
    except ValueError as error:
        raise ConfigError(f"redis_url cannot be read: {error}") from None  # not shown: it may have a password


class Meter:
    """One limit of an account, and how much of it is left as this server saw it last."""

    def __init__(self, name: str, item: RateLimitItem, unit: str, store: LimitStore):
        self._name, self._item, self._unit, self._store = name, item, unit, store
        self._key = item.key_for(name)
        self.left = item.amount
        self._reset_at = self._fresh_until = 0.0

    @property
    def limit(self) -> int:
        """The most that may be spent in a window."""
        return self._item.amount

    @property
    def reset_s(self) -> float:
        """Seconds until all of the limit is there again, if nothing more is spent."""
        return max(0.0, self._reset_at - time.monotonic())

    async def spend(self, cost: int) -> None:
        """Charge a cost; raises `RateLimited` where it is more than is left."""
        now = time.monotonic()
        is_allowed = await self._store.spend(self._key, self._item, cost)
        if is_allowed is None:
            return
        if is_allowed and now < self._fresh_until:
            self.left = max(0, self.left - cost)
            return
        window = await self._store.window(self._key, self._item)
        if window is None:
            return
        self.left = max(0, self.limit - window.spent)
        self._reset_at, self._fresh_until = now + window.reset_s, now + FRESH_S
        if not is_allowed:
            per = self._item.GRANULARITY.name
            raise RateLimited(
                f"{self._name!r} may use {self.limit} {self._unit} a {per}; {self.left} are left, "
                f"and the request has {cost}",
                window.wait_s(cost, self.limit),
            )


class Account:
    """A key's limits, and what it has spent and open; its name is that of the key's entry."""

    def __init__(self, entry: KeyEntry, store: LimitStore):
        self._store = store
        self.n_open = 0
        self.change(entry)

    def change(self, entry: KeyEntry) -> None:
        """Take the limits of an entry; what was spent stays spent."""
        self.entry = entry
        self.models = frozenset(entry.models)
        self.requests = self._meters("requests", RateLimitItemPerMinute(entry.requests_per_minute))
        self.tokens = self._meters(
            "tokens", RateLimitItemPerMinute(entry.tokens_per_minute), RateLimitItemPerDay(entry.tokens_per_day)
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Count a request as open until the block ends; raises `RateLimited` if too many are."""
        most = self.entry.max_concurrent
        if most and self.n_open >= most:
            raise RateLimited(f"{self.entry.name!r} may have {most} requests open at once, and has", 1.0)
        self.n_open += 1
        try:
            yield
        finally:
            self.n_open -= 1

    async def charge_request(self) -> None:
        """Charge one request; raises `RateLimited`."""
        for meter in self.requests:
            await meter.spend(1)

    async def charge_tokens(self, n_tokens: int) -> None:
        """Charge tokens; raises `RateLimited`.

        The minute comes first: where the day refuses, its charge is forgotten before the day's would be.
        """
        for meter in self.tokens:
            await meter.spend(n_tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Tell of the limits in OpenAI's headers; of the tokens' two, of that with less left."""
        told = []
        for unit, meters in (("requests", self.requests), ("tokens", self.tokens)):
            if meters:
                least = min(meters, key=lambda meter: meter.left)
                told += [
                    (f"x-ratelimit-limit-{unit}".encode(), b"%d" % least.limit),
                    (f"x-ratelimit-remaining-{unit}".encode(), b"%d" % least.left),
                    (f"x-ratelimit-reset-{unit}".encode(), duration(least.reset_s).encode()),
                ]
        return told

    def _meters(self, unit: str, *items: RateLimitItem) -> list[Meter]:
        for item in items:
            item.namespace = unit  # of its key in the store
        return [Meter(self.entry.name, item, unit, self._store) for item in items if item.amount]


def duration(seconds: float) -> str:
    """Write a time as OpenAI's headers do: ``450ms``, ``59.5s``, ``6m0s``, ``23h59m59s``."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    if seconds < 60:
        return f"{seconds:.1f}s".replace(".0s", "s")
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
