"""What cannot start says why in one line and ends with 1."""

from pathlib import Path

import pytest

from tests.faults.conftest import run_server

pytestmark = [pytest.mark.server]


def error_line(*flags: str, constants: tuple[str, ...] = (), n_descriptors: int = 0) -> str:
    """Run a server that cannot start; return the one line in which it says why."""
    result = run_server(*flags, constants=constants, n_descriptors=n_descriptors)
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.stderr
    return line


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    assert f"cannot load {tmp_path}: it is not a file" in error_line("--model-path", str(tmp_path))


def test_a_model_that_may_not_be_read_is_named() -> None:
    path = "/proc/sys/vm/compact_memory"  # for writing only, even to root
    assert f"cannot load {path}: Permission denied" in error_line("--model-path", path)


def test_more_workers_than_there_is_memory_for_are_refused_before_anything_loads(tiny_path: str) -> None:
    line = error_line("--model-path", tiny_path, "--workers", "4", constants=("models.WORKER_BYTES=1e13",))
    assert "num_workers is 4: with weights of 0 MB they need about 40000000 MB" in line
    assert "are available" in line


def test_more_workers_than_there_are_descriptors_for_are_refused(tiny_path: str) -> None:
    line = error_line("--model-path", tiny_path, "--workers", "16", n_descriptors=64)
    assert "cannot start 16 workers: Too many open files" in line
