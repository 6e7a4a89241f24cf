"""Programs that tests start beside the server, such as Redis and HAProxy; a plugin of pytest.

program(name) ──► its path; without it the test is skipped and the run's end says why, and with CI=true the test fails
running(…)    ──► a process that is ready, with its log; gone at the end
redis_server  ──► the address of a Redis that tests share
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


@contextlib.contextmanager
def running_redis(folder: Path, port: int = 0) -> Iterator[str]:
    """Run a Redis that keeps nothing, on `port` or a free one; yield its address."""
    port = port or free_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with running(folder / "redis.log", program("redis-server"), *flags, ready=lambda: listens(port)):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis that tests share; each uses keys of its own."""
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address
