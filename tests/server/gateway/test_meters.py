"""Accounts: exact, whatever is asked of them, and when they say that there will be enough again."""

import asyncio
import random
import time

import limits.aio.storage
import pytest
from embellama_server.gateway.meters import Account, LimitStore, Window, duration
from embellama_server.gateway.windows import MemoryStorage
from embellama_server.problems import RateLimited
from hypothesis import assume, given
from hypothesis import strategies as st

from embellama.keys import KeyEntry

counts = st.integers(0, 1000)


async def test_10000_requests_are_charged_to_the_token() -> None:
    limit = 200_000
    account = Account(KeyEntry(name="a", sha256="0" * 64, tokens_per_day=limit), LimitStore())
    chance, charged, refused = random.Random(0), 0, 0
    for _ in range(10_000):
        n = chance.randint(1, 50)
        try:
            await account.charge_tokens(n)
        except RateLimited:
            assert charged + n > limit
            refused += 1
        else:
            charged += n
        assert account.tokens[0].left == limit - charged
    assert refused
    assert charged > limit - 50


def window(previous: int, previous_left: float, current: int, current_left: float) -> Window:
    return Window(previous, 60 * previous_left, current, 60 * (1 + current_left), 60)


def later(seen: Window, seconds: float) -> int:
    """Return what counts after some seconds in which nothing is spent."""
    until_next = seen.current_left_s - seen.length_s
    if seconds < until_next:
        return seen._replace(previous_left_s=max(0.0, seen.previous_left_s - seconds)).spent
    left = max(0.0, seen.current_left_s - seconds)
    return Window(seen.current, left, 0, 0.0, seen.length_s).spent


@given(counts, counts, st.floats(0.01, 0.99), counts, st.integers(1, 1000))
def test_after_the_wait_there_is_enough(previous: int, current: int, left: float, cost: int, limit: int) -> None:
    assume(0 < cost <= limit)
    seen = window(previous, left, current, left)
    assert later(seen, seen.wait_s(cost, limit) + 1e-6) + cost <= limit


def test_a_cost_beyond_the_limit_waits_for_ever() -> None:
    assert window(0, 0, 0, 0).wait_s(6, 5) == float("inf")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.0421, "43ms"), (1, "1s"), (59.54, "59.5s"), (60, "1m0s"), (119.2, "2m0s"), (86399, "23h59m59s")],
)
def test_times_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 12)), max_size=30))
def test_windows_in_memory_are_those_of_limits(steps: list[tuple[int, int]]) -> None:
    ours, theirs, now = MemoryStorage(), limits.aio.storage.MemoryStorage(), 2.0**30

    async def compare() -> None:
        nonlocal now
        for seconds, amount in steps:
            now += seconds
            allowed = [await each.acquire_sliding_window_entry("a", 20, 64, amount) for each in (ours, theirs)]
            assert allowed[0] == allowed[1]
            windows = [await each.get_sliding_window("a", 64) for each in (ours, theirs)]
            assert windows[0] == windows[1]  # of 64 s: their parts are exact

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now)
        asyncio.run(compare())
