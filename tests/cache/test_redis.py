"""The layer in Redis, there, dead, silent and back."""

import builtins
import time
from typing import Any

import pytest
import redis

from embellama.cache.entry import sealed
from embellama.cache.redis import CALL_S, RedisLayer
from embellama.errors import ConfigError
from tests.cache.simulation import Inside, cached, rows_of, text
from tests.conftest import wait_until
from tests.programs import RedisServer


def key(n: int) -> bytes:
    return n.to_bytes(32, "little")


ENTRIES = {key(n): sealed(b"0123" * n, 1.0) for n in range(200)}


def layer_at(server: RedisServer, ttl_s: int = 0) -> RedisLayer:
    return RedisLayer(server.url, ttl_s, late_s=10.0)


def test_entries_come_back(redis_server: RedisServer) -> None:
    layer = layer_at(redis_server)
    layer.put(ENTRIES)
    assert layer.get([*ENTRIES, key(999)]) == ENTRIES
    assert layer_at(redis_server).get([key(7)]) == {key(7): ENTRIES[key(7)]}
    assert not layer.trouble


def test_redis_forgets_what_is_too_old(redis_server: RedisServer) -> None:
    layer_at(redis_server, ttl_s=1000).put(ENTRIES)
    with redis.Redis.from_url(redis_server.url) as client:
        (name, *_) = client.keys()
        assert 900 < client.ttl(name) <= 1000


def test_one_that_is_killed_is_no_error_and_used_again_when_it_is_back(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = layer_at(redis_server)
    layer.put(ENTRIES)
    redis_server.kill()
    for _ in range(3):
        assert layer.get([key(7)]) == {}
        layer.put(ENTRIES)
    assert layer.trouble
    assert len(caplog.records) == 1
    redis_server.start()

    def works() -> bool:
        layer.put(ENTRIES)
        return layer.get([key(7)]) == {key(7): ENTRIES[key(7)]}

    wait_until(works, "it is used again")
    assert not layer.trouble


def test_one_that_is_silent_is_asked_once(redis_server: RedisServer) -> None:
    layer = layer_at(redis_server)
    layer.put(ENTRIES)
    redis_server.stop()
    assert layer.get([key(7)]) == {}
    started = time.process_time(), time.monotonic()
    n = 0
    while time.monotonic() < started[1] + CALL_S:  # it would be silent for longer than that
        assert layer.get([key(7)]) == {}
        n += 1
    assert n > 10
    redis_server.go_on()


def test_a_request_is_answered_whatever_redis_does(redis_server: RedisServer) -> None:
    inside = Inside()
    backend = cached(inside, None, layer_at(redis_server))  # type: ignore[arg-type]
    for n, change in enumerate((lambda: None, redis_server.stop, redis_server.kill, redis_server.start)):
        change()
        futures = [backend.submit([text(10 * n + i) for i in range(5)]) for _ in range(3)]
        inside.compute_all()
        for future in futures:
            assert (future.result(timeout=0) == rows_of([text(10 * n + i) for i in range(5)])).all()
    backend.close()


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port/0"])
def test_a_wrong_url_is_named_at_once_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url cannot be read") as refused:
        RedisLayer(url, 0, 0.1)
    assert url not in str(refused.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "redis":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'embellama\[redis\]'"):
        RedisLayer("redis://localhost", 0, 0.1)
