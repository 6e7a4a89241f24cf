"""A run that was ended at any moment goes on, and ends with the bytes of one that was not."""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from embellama.bulk.manifest import Manifest
from tests.bulk.conftest import Bulk, StartBulk, bulk_of, texts
from tests.bulk.faults import LAST_STAGES, STAGES
from tests.bulk.forks import Ended, Forks
from tests.conftest import wait_until

N_ROWS, PART_ROWS = 6_000, 50
FLAGS = ("--part-rows", str(PART_ROWS), "--dimensions", "8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which no two are equal, with a column that is only read."""
    path = tmp_path_factory.mktemp("resume") / "in.jsonl"
    rows = [{"text": f"{text} x{number}", "more": "x" * 2000} for number, text in enumerate(texts(N_ROWS))]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def outputs(path: Path) -> list[bytes]:
    beside = path.with_name(path.name + ".rows.jsonl")
    return [each.read_bytes() for each in (path, beside) if each.exists()]


def n_recorded(path: Path) -> int:
    manifest = Manifest.read(path)
    return manifest.counts.rows if manifest else 0


class Killed:
    """A run that is killed and gone on with until it is complete, and what it did twice."""

    def __init__(self, start: StartBulk, source: Path, output: Path, folder: Path):
        self._start, self._source, self.output = start, source, output
        self._counts, self._reads = folder / "counts", folder / "reads"
        self.computed_again: list[int] = []
        self.n_killed = 0

    @property
    def n_read(self) -> int:
        """Bytes of the input that all runs have read."""
        return sum(map(int, self._reads.read_text().split()))

    def run(
        self, fault: tuple[str, int] | None = None, after: tuple[int, float] | None = None, **options: object
    ) -> Ended:
        """Go on until a fault, or for some rows and a time; note how many rows were computed in vain."""
        self._counts.write_text("")
        before = n_recorded(self.output)
        options = {"fault": fault, "counts": str(self._counts), "reads": str(self._reads), **options}
        fork = self._start(self._source, "-o", self.output, "--resume", *FLAGS, **options)
        if after:
            n_rows, seconds = after
            wait_until(lambda: n_recorded(self.output) >= before + n_rows, "it has written rows", pause_s=0.001)
            time.sleep(seconds)
            fork.kill()
        ended = fork.wait()
        computed = sum(map(int, self._counts.read_text().split()))
        self.computed_again.append(computed - (n_recorded(self.output) - before))
        self.n_killed += ended.returncode == -signal.SIGKILL
        return ended


class Undisturbed(NamedTuple):
    """A run that nothing happened to.

    outputs: The files that it wrote.
    seconds: How long it took.
    """

    outputs: list[bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(forked: Forks, tiny_path: str, source: Path) -> Callable[[str], Undisturbed]:
    """Return a run of `source` to an output of a kind."""

    @functools.cache
    def run(suffix: str) -> Undisturbed:
        out = source.with_name(f"out.{suffix}")
        started = time.monotonic()
        result = bulk_of(forked, tiny_path)(source, "-o", out, *FLAGS).wait()
        assert result.returncode == 0, result.stderr
        return Undisturbed(outputs(out), time.monotonic() - started)

    return run


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npy"])
def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    start_bulk: StartBulk, undisturbed: Callable[[str], Undisturbed], source: Path, tmp_path: Path, suffix: str
) -> None:
    whole, choose = undisturbed(suffix), random.Random(suffix)
    killed = Killed(start_bulk, source, tmp_path / f"killed.{suffix}", tmp_path)
    for stage in STAGES:
        killed.run((stage, choose.randint(2, 20)))
    for _ in range(20 - len(STAGES) - len(LAST_STAGES)):
        killed.run(after=(choose.randint(0, 6 * PART_ROWS), choose.uniform(0, whole.seconds / 100)))
    for stage in LAST_STAGES:
        killed.run((stage, 1))
    result = killed.run()
    assert killed.n_killed == 20
    assert result.returncode == 0, result.stderr
    assert outputs(killed.output) == whole.outputs
    assert not list(tmp_path.glob("*.partial"))
    assert max(killed.computed_again) <= PART_ROWS
    assert killed.n_read - source.stat().st_size <= 20 * 0.02 * source.stat().st_size


def test_an_interrupted_run_goes_on(
    start_bulk: StartBulk, undisturbed: Callable[[str], Undisturbed], source: Path, tmp_path: Path
) -> None:
    whole, killed = undisturbed("npy"), tmp_path / "killed.npy"
    fork = start_bulk(source, "-o", killed, *FLAGS)
    wait_until(lambda: n_recorded(killed) > 0, "it has written rows")
    fork.kill(signal.SIGINT)
    assert fork.wait().returncode == 130
    assert start_bulk(source, "-o", killed, "--resume", *FLAGS).wait().returncode == 0
    assert outputs(killed) == whole.outputs


@contextlib.contextmanager
def small_disk(path: Path, n_bytes: int) -> Iterator[bool]:
    """Mount a file system of so many bytes; where this process may not, tell that there is none."""
    path.mkdir()
    size = f"size={n_bytes}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize(("suffix", "share"), [("jsonl", 0.5), ("npy", 0.5), ("parquet", 0.5), ("parquet", 1.5)])
def test_a_full_disk_is_named_and_costs_at_most_one_part(
    start_bulk: StartBulk,
    undisturbed: Callable[[str], Undisturbed],
    source: Path,
    tmp_path: Path,
    suffix: str,
    share: float,
) -> None:
    whole, disk = undisturbed(suffix), tmp_path / "disk"
    limit = int(len(whole.outputs[0]) * share)
    with small_disk(disk, limit) as mounted:
        killed = Killed(start_bulk, source, disk / f"full.{suffix}", tmp_path)
        failed = killed.run(max_file_bytes=0 if mounted else int(limit / max(1, 2 * (share - 1))))
        assert failed.returncode == 1
        assert (
            f"{'No space left on device' if mounted else 'File too large'}; what was written is kept" in failed.stderr
        )
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert killed.run().returncode == 0
        assert outputs(killed.output) == whole.outputs
        assert max(killed.computed_again) <= PART_ROWS


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--dimensions", "4"), "options.dimensions was 8 and is 4"),
        (("--normalization", "none"), "model.settings.normalization was 'l2' and is 'none'"),
    ],
)
def test_another_job_is_not_gone_on_with(
    bulk: Bulk, source: Path, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "out.jsonl"
    bulk(source, "-o", out, "--limit", "5", *FLAGS)
    result = bulk(source, "-o", out, "--limit", "5", "--resume", *FLAGS, *flags)
    assert result.returncode == 1
    assert says in result.stderr


def test_a_changed_input_is_not_gone_on_with(bulk: Bulk, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("red\n")
    bulk(source, "-o", out)
    os.utime(source, ns=(0, 0))
    result = bulk(source, "-o", out, "--resume")
    assert f"{source}: mtime_ns was" in result.stderr


def test_an_output_of_another_pyarrow_is_not_gone_on_with(bulk: Bulk, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.parquet"
    source.write_text("red\n")
    bulk(source, "-o", out)
    manifest = Manifest.path(out)
    manifest.write_text(manifest.read_text().replace('"pyarrow": "', '"pyarrow": "0.'))
    assert "packages.pyarrow was '0." in bulk(source, "-o", out, "--resume").stderr


def test_an_output_that_is_there_stays(bulk: Bulk, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    result = bulk(source, "-o", out)
    assert (result.returncode, out.read_text()) == (1, "mine")
    assert "--overwrite replaces it" in result.stderr
