"""The layer in memory."""

import tracemalloc

from embellama.cache.entry import sealed
from embellama.cache.memory import MemoryLayer


def key(n: int) -> bytes:
    return n.to_bytes(32, "little")


def entry(n: int, n_bytes: int = 400, born: float = 0.0) -> bytes:
    return sealed(bytes([n % 256]) * n_bytes, born)


def test_what_was_used_longest_ago_is_dropped() -> None:
    layer = MemoryLayer(10_000)
    for n in range(20):
        layer.put(key(n), entry(n))
        layer.get(key(0), 400, 0.0)
    assert layer.get(key(0), 400, 0.0) == entry(0)
    assert layer.get(key(1), 400, 0.0) is None
    assert layer.get(key(19), 400, 0.0) == entry(19)
    assert layer.state.n_bytes is not None
    assert 9_000 < layer.state.n_bytes <= 10_000
    assert layer.state.n_evicted + len(layer._entries) == 20


def test_what_would_drive_out_too_much_is_not_kept() -> None:
    layer = MemoryLayer(10_000)
    layer.put(key(1), entry(1, 2_000))
    assert layer.get(key(1), 2_000, 0.0) is None
    empty = MemoryLayer(0)
    empty.put(key(1), entry(1))
    assert empty.get(key(1), 400, 0.0) is None


def test_an_entry_of_another_length_or_too_old_is_a_miss() -> None:
    layer = MemoryLayer(10_000)
    layer.put(key(1), entry(1, born=100.0))
    assert layer.get(key(1), 404, 0.0) is None
    assert layer.get(key(1), 400, 101.0) is None
    assert layer.get(key(1), 400, 100.0)
    layer.put(key(1), entry(1, born=102.0))
    assert layer.get(key(1), 400, 101.0)
    assert layer.state[1:3] == (2, 2)


def test_its_bytes_are_those_that_python_takes() -> None:
    layer = MemoryLayer(1 << 26)
    tracemalloc.start()
    try:
        for n in range(20_000):
            layer.put(key(n), entry(n, 256))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert layer.state.n_bytes is not None
    assert 0.7 * layer.state.n_bytes < taken < 1.1 * layer.state.n_bytes, taken / 20_000 - 256
