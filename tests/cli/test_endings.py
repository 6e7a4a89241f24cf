"""How every command ends where it is interrupted, or where what it says cannot be written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import BIN, ROOT, wait_until

DOWNLOAD = [sys.executable, str(ROOT / "scripts" / "download_models.py")]
EMBELLAMA = [str(BIN / "embellama")]
SERVER = [str(BIN / "embellama-server")]


SAYING = [
    *([*EMBELLAMA, flag] for flag in ("--version", "--help")),
    *([*EMBELLAMA, command, "--help"] for command in ("embed", "bulk", "search", "inspect", "devices", "bench")),
    *([*SERVER, flag] for flag in ("--version", "--help")),
]
NO_SPACE = "Error: the output cannot be written: No space left on device\n"
CLOSED = "Error: the output cannot be written: standard output is closed\n"


def named(command: list[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:]])


@pytest.mark.parametrize("command", SAYING, ids=named)
@pytest.mark.parametrize(("shell", "says"), [('"$@" >/dev/full', NO_SPACE), ('"$@" >&-', CLOSED)])
def test_help_that_cannot_be_written_is_told_in_one_line(command: list[str], shell: str, says: str) -> None:
    result = subprocess.run(["bash", "-c", shell, "-", *command], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (1, says)


@pytest.mark.parametrize("command", ["embed", "inspect", "devices", "bench"])
def test_a_closed_output_is_told_before_any_work(tiny_path: str, command: str) -> None:
    model = {"embed": ["--model-path", tiny_path, "red"], "devices": []}.get(command, [tiny_path])
    run = ["bash", "-c", '"$@" >&-', "-", *EMBELLAMA, command, *model]
    result = subprocess.run(run, capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (1, CLOSED)


@pytest.mark.parametrize("command", [*SAYING[:3], [*SERVER, "--help"]], ids=named)
def test_a_reader_that_has_gone_ends_it_without_a_word(command: list[str]) -> None:
    run = ["bash", "-c", '"$@" | true', "-", *command]
    assert subprocess.run(run, capture_output=True, text=True, timeout=60).stderr == ""


@pytest.mark.parametrize(("shell", "says"), [('"$@" >/dev/full', "No space left on device"), ('"$@" >&-', "closed")])
def test_a_path_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, shell: str, says: str) -> None:
    made = tmp_path / "minilm-f16.gguf"
    made.touch()
    run = ["bash", "-c", shell, "-", *DOWNLOAD, "--dtype", "f16", "--dest", str(tmp_path)]
    result = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("download_models: the path cannot be written")
    assert result.stderr.rstrip().endswith(says)
    assert result.stderr.count("\n") == 1


def interrupted(command: list[str], after_s: float) -> tuple[int, str]:
    """Run a command, with standard input open, until `after_s`; return its exit status and what it said."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    return process.returncode, said.strip()


def test_ctrl_c_while_it_waits_for_texts_ends_with_130(tiny_path: str) -> None:
    command = [*EMBELLAMA, "embed", "--model-path", tiny_path, "--workers", "1"]
    assert interrupted(command, 2) == (130, "")


def test_ctrl_c_while_it_computes_ends_with_130(tiny_path: str) -> None:
    command = f"yes red | {EMBELLAMA[0]} embed --model-path {tiny_path} --workers 1 > /dev/null"
    with subprocess.Popen(["bash", "-c", f"set -o pipefail; {command}"], stderr=subprocess.PIPE, text=True) as shell:
        processes = psutil.Process(shell.pid).children

        def embed() -> list[psutil.Process]:
            return [each for each in processes() if "embed" in each.cmdline() and each.num_threads() > 1]

        wait_until(lambda: bool(embed()), "it computes")
        time.sleep(1)
        embed()[0].send_signal(signal.SIGINT)
        _, said = shell.communicate(timeout=60)
    assert (shell.returncode, said.strip()) == (130, "")


def test_ctrl_c_while_bench_measures_ends_with_130_and_leaves_nothing(tiny_path: str, tmp_path: Path) -> None:
    # As a terminal does: the signal reaches the processes that measure, too.
    pipe, environment = subprocess.PIPE, {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*EMBELLAMA, "bench", "--seconds", "30", tiny_path]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, process_group=0) as process:
        time.sleep(5)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_a_download_with_130(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "held").open("w"):
        folder = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)  # so that it waits
        assert interrupted([*DOWNLOAD, "--dest", str(tmp_path)], 3) == (130, "")
        os.close(folder)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_name_of_a_file_that_is_not_utf_8_is_shown_with_escapes(
    tiny_path: str, tmp_path: Path, flags: list[str]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.gguf")
    shutil.copy(tiny_path, path)
    result = subprocess.run([*EMBELLAMA, "inspect", *flags, path], capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    shown = json.loads(result.stdout)["info"]["path"] if flags else result.stdout.decode()
    assert rf"{tmp_path}/caf\xe9.gguf" in shown


def test_a_line_of_the_log_with_the_name_of_such_a_file_is_json() -> None:
    import logging

    from embellama_server.telemetry.logs import _Json

    record = logging.LogRecord("embellama", logging.INFO, "", 0, "from %s", ("caf\udce9.gguf",), None)
    assert json.loads(_Json().format(record))["message"] == r"from caf\xe9.gguf"
