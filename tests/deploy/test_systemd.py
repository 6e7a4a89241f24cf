"""The systemd unit is right, and what it forbids the server does without."""

import functools
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import BIN, ROOT, run, running_server, wait_until
from tests.programs import program
from tests.watching import traced, watched

# Asks Linux (6.3 or later) to refuse memory both writable and executable, as systemd does, and becomes another program.
PR_SET_MDWE = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"

UNIT = ROOT / "deploy" / "systemd" / "embellama-server.service"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with the path of the server that is installed here."""
    text = UNIT.read_text().replace("/opt/embellama/bin/", f"{BIN}/")
    assert str(BIN) in text
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def calls(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All system calls of a server that starts, answers, replaces its workers and ends."""
    folder = tmp_path_factory.mktemp("calls")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        flags = ("--model-path", tiny_path, "--workers", "1")
        under = watched(folder / "calls", sys.executable, "-c", PR_SET_MDWE, calls="all")
        with running_server(folder / "log", *flags, under=under) as server:
            assert httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red"}).status_code == 200
            [worker] = server.workers()
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: worker not in server.workers(), "the worker is replaced")
            server.wait_ready()
    return [call.replace(str(folder), "FOLDER") for call in traced(folder / "calls")]


def settings(name: str) -> list[str]:
    """Return the words that the unit sets something to."""
    return [word for line in re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE) for word in line.split()]


@functools.cache
def system_calls(name: str) -> frozenset[str]:
    """List the calls of one of systemd's sets."""
    listed = run(program("systemd-analyze"), "syscall-filter", name).stdout.splitlines()[1:]
    names = [line.strip() for line in listed if not line.strip().startswith("#")]
    return frozenset().union(*(system_calls(name) if name.startswith("@") else {name} for name in names if name))


def test_systemd_finds_nothing_wrong_and_little_exposed(unit: Path) -> None:
    for command in (("verify", "--man=no"), ("security", "--offline=true", "--threshold=15", "--no-pager")):
        done = run(program("systemd-analyze"), *command, unit)
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(unit) not in done.stderr, done.stderr


def test_the_server_makes_only_calls_that_the_unit_allows(calls: list[str]) -> None:
    allowed: frozenset[str] = frozenset()
    for name in settings("SystemCallFilter"):
        allowed = allowed - system_calls(name[1:]) if name.startswith("~") else allowed | system_calls(name)
    made = {match[1] for call in calls if (match := re.match(r"(\w+)\(", call))}
    assert made - allowed == set()


def test_it_does_without_memory_both_writable_and_executable(calls: list[str]) -> None:
    assert settings("MemoryDenyWriteExecute") == ["yes"]
    made = [call for call in calls if re.match("(mmap|(pkey_)?mprotect)", call) and "PROT_WRITE|PROT_EXEC" in call]
    if any(call.endswith(" = 0") or "= 0x" in call for call in made):
        pytest.skip("this Linux is older than 6.3, and refuses no such memory")


def test_it_makes_only_sockets_that_the_unit_allows(calls: list[str]) -> None:
    families = {match[1] for call in calls if (match := re.match(r"socket(?:pair)?\((AF_\w+)", call))}
    assert families <= {*settings("RestrictAddressFamilies")}


def test_it_writes_nowhere_but_in_its_cache_folder(calls: list[str]) -> None:
    opened = (
        re.match(r'(?:open(?:at)?|creat|mkdir)\((?:AT_FDCWD, )?"([^"]+)".*(O_WRONLY|O_RDWR|O_CREAT)', call)
        for call in calls
    )
    places = {match[1] for match in opened if match}
    assert {path for path in places if not path.startswith(("FOLDER/cache/", "/dev/", "/proc/"))} == set()
