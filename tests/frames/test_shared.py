"""Engines of a process: made once, when first used, closed at its exit; a fork makes its own."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embellama import Unavailable
from embellama.frames.shared import Shared
from tests.conftest import ROOT, run


class Thing:
    def __init__(self, key: str):
        if key == "wrong":
            raise ValueError("wrong")
        self.key, self.pid, self.n_closed = key, os.getpid(), 0

    def close(self) -> None:
        self.n_closed += 1


def test_many_threads_make_a_thing_once() -> None:
    shared, together = Shared(Thing), threading.Barrier(8)

    def get(_: int) -> Thing:
        together.wait()
        return shared.get("a")

    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(get, range(8))}) == 1


def test_what_could_not_be_made_is_tried_again() -> None:
    shared = Shared(Thing)
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"):
            shared.get("wrong")


def test_what_is_closed_makes_nothing_more() -> None:
    shared = Shared(Thing)
    thing = shared.get("a")
    shared.close()
    assert thing.n_closed == 1
    with pytest.raises(Unavailable, match="ending"):
        shared.get("b")


PROGRAM = """
import os, sys
import pyarrow as pa
from embellama import EngineConfig
from embellama.frames import embed
from embellama.frames.models import engines

config = EngineConfig(model_path=sys.argv[1], compute="llama", num_workers=1, n_threads=2)
column = pa.array(["red", None, "green"])
before = embed(column, config)
engine = engines.get(next(iter(engines._things)))
close = engine.close
engine.close = lambda: (close(), print("closed", flush=True))

engines._lock.acquire()  # as a thread of the parent may hold it just now
pid = os.fork()
if pid == 0:
    assert not engines._things
    os.environ["XDG_CACHE_HOME"] += "/fork"  # so that it measures the model on this thread, as its parent did
    assert embed(column, config).equals(before)  # though OpenMP believes that it has the parent's threads
    mine, = engines._things.values()
    assert mine is not engine
    mine.close()
    os._exit(7)
engines._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert embed(column, config).equals(before)
"""


def test_a_fork_makes_its_own_engine_and_the_parents_is_closed_at_its_exit(tiny_path: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = run(sys.executable, "-c", PROGRAM, tiny_path, cwd=ROOT, env=environment)
    assert (result.returncode, result.stdout) == (0, "closed\n"), result.stderr
