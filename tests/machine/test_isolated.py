"""Processes for what may crash: which signals end them, who they end with, and how that is told."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from embellama.machine.isolated import IsolatedProcess
from embellama.machine.signals import IGNORED, how_it_ended
from tests.conftest import ROOT, run, wait_until


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", IGNORED)
def test_a_signal_to_the_whole_group_does_not_end_it(number: signal.Signals) -> None:
    with IsolatedProcess(str, "one") as process:
        os.kill(process._process.pid, number)
        assert process.call(len) == 3
        assert process.call(len) == 3


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signal.py").write_text("raise SystemExit('a stranger was imported')")
    monkeypatch.chdir(tmp_path)
    with IsolatedProcess(str, "one") as process:
        assert process.call(len) == 3


def test_a_signal_that_comes_while_it_starts_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = IsolatedProcess.__init__.__globals__["subprocess"].Popen

    def signalled(*args: object, **options: object) -> object:
        process = popen(*args, **options)
        os.kill(process.pid, signal.SIGTERM)
        return process

    monkeypatch.setattr("embellama.machine.isolated.subprocess.Popen", signalled)
    with IsolatedProcess(str, "one") as process:
        assert process.call(len) == 3


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (-9, "ended by signal 9 (SIGKILL)"),
        (-(signal.SIGRTMIN + 3), f"ended by signal {signal.SIGRTMIN + 3}"),
        (3, "ended with status 3"),
    ],
)
def test_how_a_process_ended_is_told_of_every_signal(status: int, told: str) -> None:
    assert how_it_ended(status) == told


def test_a_process_does_not_outlive_its_starter_for_a_fork(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from embellama.machine.isolated import IsolatedProcess\n"
        "process = IsolatedProcess(dict)\n"
        "if os.fork() == 0:\n"
        "    os.close(1), os.close(2)\n"
        "    sys.stdin.read()\n"  # the fork waits on
        "    os._exit(0)\n"
        "print(process._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    read, write = os.pipe()
    try:
        result = run(sys.executable, program, cwd=ROOT, stdin=read, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until(lambda: not is_running(int(result.stdout)), "it ends with its starter", 10)
    finally:
        os.close(write)
        os.close(read)
