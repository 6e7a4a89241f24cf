"""The layer in a SQLite file, as processes share it, die and run out of room."""

import logging
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embellama.cache.entry import is_sound, sealed
from embellama.cache.sqlite import SqliteLayer
from embellama.errors import ConfigError
from tests.conftest import ROOT, wait_until

MB = 1_000_000

# A process that writes entries until it is killed: for n = 0, 1, 2 … the one that `entry` makes.
WRITER = """
import itertools, sys
from embellama.cache.sqlite import SqliteLayer
from tests.cache.test_sqlite import entries
layer = SqliteLayer(sys.argv[1], 1_000_000_000)
for n in itertools.count(int(sys.argv[2]), 10):
    layer.put(entries(n, n + 10))
    print(n, flush=True)
"""


def entries(start: int, stop: int, n_bytes: int = 1000) -> dict[bytes, bytes]:
    return {key(n): sealed(n.to_bytes(4, "little") * (n_bytes // 4), 1.0) for n in range(start, stop)}


def key(n: int) -> bytes:
    return n.to_bytes(32, "little")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "rows.sqlite")


@pytest.fixture
def layer(path: str) -> Iterator[SqliteLayer]:
    layer = SqliteLayer(path, 10 * MB)
    yield layer
    layer.close()


def start_writer(path: str, first: int = 0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(first)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_entries_come_back_also_to_the_next_who_opens_the_file(layer: SqliteLayer, path: str) -> None:
    layer.put(entries(0, 1500))
    wanted = [key(n) for n in range(1400, 1600)]
    assert layer.get(wanted) == entries(1400, 1500)
    layer.close()
    again = SqliteLayer(path, 10 * MB)
    assert again.get(wanted) == entries(1400, 1500)
    assert again.n_bytes == layer.n_bytes
    again.close()


def test_an_entry_is_replaced(layer: SqliteLayer) -> None:
    layer.put({key(1): b"damaged"})
    layer.put(entries(1, 2))
    assert layer.get([key(1)]) == entries(1, 2)


def test_the_file_stays_within_its_limit(layer: SqliteLayer, path: str) -> None:
    for n in range(0, 20_000, 500):
        layer.put(entries(n, n + 500))
    assert layer.n_bytes is not None
    assert 8 * MB < layer.n_bytes <= 11 * MB
    assert Path(path).stat().st_size < 13 * MB
    assert layer.n_evicted > 5_000
    assert len(layer.get([key(n) for n in range(19_000, 20_000)])) == 1000


def test_what_was_used_longest_ago_is_dropped_first(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SqliteLayer(path, 4 * MB)
    now = [1_000_000_000.0]
    monkeypatch.setattr("embellama.cache.sqlite.time.time", lambda: now[0])
    layer.put(entries(0, 200))
    for n in range(200, 8000, 200):
        now[0] += 4000
        layer.get([key(n) for n in range(100)])
        layer.put(entries(n, n + 200))
    assert layer.get([key(n) for n in range(200)]) == entries(0, 100)
    layer.close()


def test_a_writer_that_is_killed_leaves_whole_entries(path: str) -> None:
    for first in (0, 100_000):
        writer = start_writer(path, first)
        assert writer.stdout
        for _ in range(30):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        layer = SqliteLayer(path, 100 * MB)
        found = layer.get([key(n) for n in range(first, first + 300)])
        assert found == entries(first, first + 300)
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
        layer.close()


def test_processes_share_a_file(path: str) -> None:
    writers = [start_writer(path, first) for first in (0, 1_000_000)]
    layer = SqliteLayer(path, 1000 * MB)
    try:
        wanted = [key(n) for first in (0, 1_000_000) for n in range(first, first + 100)]
        wait_until(lambda: len(layer.get(wanted)) == 200, "both have written")
        layer.put(entries(2_000_000, 2_000_010))
        assert all(is_sound(entry, 1000, 0.0) for entry in layer.get(wanted).values())
        assert not layer.trouble
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
        layer.close()


def test_one_that_is_held_up_by_another_process_leaves_rows_out(layer: SqliteLayer, path: str) -> None:
    layer.put(entries(0, 1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    layer.put(entries(1, 2))
    assert layer.get([key(0), key(1)]) == entries(0, 1)
    other.execute("ROLLBACK")
    layer.put(entries(2, 3))
    assert layer.get([key(2)]) == entries(2, 3)
    assert not layer.trouble
    other.close()


def test_a_full_disk_stops_writing_with_one_line(
    layer: SqliteLayer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.put(entries(0, 10))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with caplog.at_level(logging.INFO, "embellama.cache"):
            for n in range(10, 1000, 100):
                layer.put(entries(n, n + 100))
                monkeypatch.setattr(layer, "_write_again_at", 0.0)
        assert "not written to" in layer.trouble
        assert len(caplog.records) == 1
        assert layer.get([key(n) for n in range(10)]) == entries(0, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    layer.put(entries(2000, 2001))
    assert layer.get([key(2000)]) == entries(2000, 2001)
    assert not layer.trouble


def test_a_file_that_is_damaged_while_it_is_used_is_left_alone(
    layer: SqliteLayer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer.put(entries(0, 3000))
    layer.close()
    with open(path, "r+b") as file:  # all but the first pages
        file.seek(20_000)
        file.write(b"?" * (os.path.getsize(path) - 20_000))
    damaged = SqliteLayer(path, 10 * MB)
    assert damaged.get([key(n) for n in range(3000)]) == {}
    damaged.put(entries(0, 10))
    assert "damaged" in damaged.trouble
    assert len(caplog.records) == 1
    damaged.close()


@pytest.mark.parametrize("what", ["text", "folder", "no folder", "another program's", "read-only folder"])
def test_a_file_that_cannot_be_used_is_named_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    if what == "text":
        path.write_text("not a database, but longer than the head of one is. " * 20)
    elif what == "folder":
        path.mkdir()
    elif what == "no folder":
        path = tmp_path / "missing" / "file"
    elif what == "another program's":
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE bookmarks (x)")
        other.commit()
        other.close()
    else:
        path = Path("/proc/rows.sqlite")
    with pytest.raises(ConfigError, match=f"cache_file is '{path}', which cannot be used"):
        SqliteLayer(str(path), MB)
