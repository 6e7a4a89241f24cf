"""A run that was ended at any moment goes on, and ends with the bytes of one that was not."""

import os
import random
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.bulk.conftest import Bulk, command, texts
from tests.conftest import wait_until

FLAGS = ("--part-rows", "100")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{text}\n" for text in texts(3000)))
    return path


def outputs(path: Path) -> list[bytes]:
    beside = path.with_name(path.name + ".rows.jsonl")
    return [each.read_bytes() for each in (path, beside) if each.exists()]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npy"])
def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    bulk: Bulk, tiny_path: str, source: Path, tmp_path: Path, suffix: str
) -> None:
    whole, killed = tmp_path / f"whole.{suffix}", tmp_path / f"killed.{suffix}"
    assert bulk(source, "-o", whole, *FLAGS).returncode == 0
    manifest = tmp_path / f"killed.{suffix}.manifest.json"
    choose = random.Random(suffix)
    for how in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        before = manifest.read_bytes() if manifest.exists() else b""
        with subprocess.Popen(command(tiny_path, source, "-o", killed, "--resume", *FLAGS)) as process:

            def moved(process: "subprocess.Popen[bytes]" = process, before: bytes = before) -> bool:
                return process.poll() is not None or (manifest.exists() and manifest.read_bytes() != before)

            wait_until(moved, "it has written a part")
            try:
                process.wait(choose.random() / 5)
            except subprocess.TimeoutExpired:
                process.send_signal(how)
    result = bulk(source, "-o", killed, "--resume", *FLAGS)
    assert result.returncode == 0, result.stderr
    assert outputs(killed) == outputs(whole)
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_named_and_costs_at_most_one_part(
    bulk: Bulk, tiny_path: str, source: Path, tmp_path: Path
) -> None:
    whole, full = tmp_path / "whole.jsonl", tmp_path / "full.jsonl"
    assert bulk(source, "-o", whole, *FLAGS).returncode == 0
    limit = whole.stat().st_size // 2

    def no_more() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = command(tiny_path, source, "-o", full, *FLAGS)
    failed = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=no_more, timeout=60, check=False)
    assert failed.returncode == 1
    assert "--resume goes on" in failed.stderr
    assert bulk(source, "-o", full, *FLAGS, "--resume").returncode == 0
    assert full.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--dimensions", "8"), "options.dimensions was None and is 8"),
        (("--normalization", "none"), "model.settings.normalization was 'l2' and is 'none'"),
    ],
)
def test_another_job_is_not_gone_on_with(
    bulk: Bulk, source: Path, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "out.jsonl"
    bulk(source, "-o", out, "--limit", "5")
    result = bulk(source, "-o", out, "--limit", "5", "--resume", *flags)
    assert result.returncode == 1
    assert says in result.stderr


def test_a_changed_input_is_not_gone_on_with(bulk: Bulk, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    bulk(source, "-o", out, "--limit", "5")
    os.utime(source, ns=(0, 0))
    result = bulk(source, "-o", out, "--limit", "5", "--resume")
    assert f"{source}: mtime_ns was" in result.stderr


def test_an_output_that_is_there_stays(bulk: Bulk, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    result = bulk(source, "-o", out)
    assert (result.returncode, out.read_text()) == (1, "mine")
    assert "--overwrite replaces it" in result.stderr
