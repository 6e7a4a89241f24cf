"""`RedisLayer`: rows kept in a Redis server, shared by the servers of many machines.

Used by one thread, that of `SlowLayers`. Each call has a bound on its time; after one that fails, Redis is left alone
for a while (`Breaker`).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embellama.cache.breaker import Breaker
from embellama.errors import ConfigError

logger = logging.getLogger("embellama.cache")

PREFIX = b"embellama:"

# Bounds on a call, and on connecting before it. Requests do not wait for so long (`layers.READ_S`); it is how long a
# silent Redis keeps the thread from asking the other layers.
CALL_S = 0.02
CONNECT_S = 0.1


class RedisLayer:
    """A layer in Redis.

    Attributes:
        name: Of the layer, in metrics.
        n_bytes: None: Redis knows.
        n_evicted: 0: Redis knows.
        trouble: Why it is left alone; empty while it answers.
    """

    name = "redis"

    def __init__(self, url: str, ttl_s: int, late_s: float):
        """Prepare to ask the Redis at `url`, which need not be there yet.

        Args:
            url: As redis-py reads it: ``redis://host:6379/0``, ``rediss://…`` or ``unix://…``.
            ttl_s: Seconds after which Redis forgets an entry; 0 leaves that to its own settings.
            late_s: An answer after more seconds is too late to be of use.

        Raises:
            ConfigError: The URL is wrong, or the package `redis` is missing.
        """
        try:
            from redis import Redis, RedisError
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ConfigError(
                "redis_url is set, but the package redis is not installed: pip install 'embellama[redis]'"
            ) from None
        try:
            self._client = Redis.from_url(
                url, socket_timeout=CALL_S, socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0)
            )
        except ValueError as error:
            raise ConfigError(f"redis_url cannot be read: {error}") from None  # not shown: it may have a password
        self._errors = (RedisError, OSError)
        self._ttl_s = ttl_s or None
        self._breaker = Breaker(late_s)
        self.n_bytes: int | None = None
        self.n_evicted = 0
        self.trouble = ""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are there; none if Redis does not answer."""
        entries: Any = self._call(lambda: self._client.mget([PREFIX + key for key in keys]), awaited=True)
        return {key: entry for key, entry in zip(keys, entries or (), strict=False) if entry is not None}

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries, in one message; none if Redis does not answer."""

        def write() -> None:
            with self._client.pipeline(transaction=False) as pipeline:
                for key, entry in entries.items():
                    pipeline.set(PREFIX + key, entry, ex=self._ttl_s)
                pipeline.execute()

        self._call(write, awaited=False)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, call: Callable[[], Any], *, awaited: bool) -> Any:
        """Return what a call to Redis returns, or None if it fails, or if Redis is left alone.

        Args:
            call: The call.
            awaited: Whether a request waits for it, so that its answer may come too late.
        """
        started = time.monotonic()
        if not self._breaker.allows(started):
            return None
        try:
            answer = call()
        except self._errors as error:
            self._breaker.failed(time.monotonic())
            self._tell(str(error))
            return None
        now = time.monotonic()
        self._breaker.answered(now - started if awaited else 0.0, now)
        self._tell("its answers come too late" if self._breaker.is_open else "")
        return answer

    def _tell(self, trouble: str) -> None:
        if trouble and not self.trouble:
            logger.warning("redis does not answer, and rows are computed without it: %s", trouble)
        if self.trouble and not trouble:
            logger.info("redis answers again")
        self.trouble = trouble
