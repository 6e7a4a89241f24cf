"""Programs that tests start beside the server, such as Redis and HAProxy; a plugin of pytest.

program(name) ──► its path; without it the test is skipped and the run's end says why, and with CI=true the test fails
running(…)    ──► a process that is ready, with its log; gone at the end
redis_server  ──► a Redis of a test's own
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import wait_until

SETUP = "scripts/setup --services"

# Debian keeps daemons where only root's PATH looks.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def program(name: str) -> str:
    """Return the path of a program that `SETUP` installs; where it is missing, end the test."""
    if path := shutil.which(name, path=PATH):
        return path
    missing = f"{name} is missing: {SETUP}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reasons = (report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()))
    for reason in sorted({reason.removeprefix("Skipped: ") for reason in reasons if SETUP in reason}):
        terminalreporter.write_line(f"not tested, as {reason}")


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether connections to a port of 127.0.0.1 are accepted."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(log: Path, *command: str | Path, ready: Callable[[], bool]) -> Iterator[psutil.Popen]:
    """Run a program, ready, until the block ends; `log` gets what it prints."""
    with log.open("w") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or ready(), f"{command[0]} is ready", 30)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        family = [process, *process.children(recursive=True)] if process.poll() is None else []
        if family:
            process.terminate()
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()


class RedisServer:
    """A Redis that keeps nothing on disk, and can be killed, stopped and started again on the same port."""

    def __init__(self, folder: Path):
        self._log = folder / "redis.log"
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._flags = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", folder, "--save", "")
        self._life = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        command = (program("redis-server"), *self._flags)
        self._process = self._life.enter_context(running(self._log, *command, ready=lambda: listens(self.port)))

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(psutil.NoSuchProcess):  # it has gone
            self._process.kill()
        self._life.close()

    def stop(self) -> None:
        """Let it be silent: connections are taken, and nothing is answered."""
        self._process.suspend()

    def go_on(self) -> None:
        """Let it answer again."""
        self._process.resume()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()
