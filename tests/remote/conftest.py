"""Servers that fail as a test wants, and jobs that they compute."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from embellama.bulk.job import BulkJob
from embellama.bulk.progress import Log
from embellama.bulk.run import Summary, run
from embellama.remote.config import RemoteConfig
from tests.conftest import ROOT
from tests.programs import free_port, listens
from tests.remote.faulty import Plan


class FaultyServer:
    """A `faulty` process, which can be killed and started again on the same port."""

    def __init__(self, log: Path, **plan: Any):
        self.log, self.plan, self.port = log, Plan(**plan), free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log.touch()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.remote.faulty", str(self.port), str(self.log)]
        self.process = psutil.Popen([*command, msgspec.json.encode(self.plan).decode()], cwd=ROOT)
        while not listens(self.port):
            assert self.process.poll() is None

    def kill(self) -> None:
        if self.process.is_running():
            self.process.kill()
        self.process.wait()

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests for vectors that came, without the one that each client begins with."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if "canary" not in line]


StartFaulty = Callable[..., FaultyServer]


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[StartFaulty]:
    """Start a server with a plan; it is gone at the end."""
    started: list[FaultyServer] = []

    def start(**plan: Any) -> FaultyServer:
        started.append(FaultyServer(tmp_path / f"server-{len(started)}.log", **plan))
        return started[-1]

    yield start
    for server in started:
        server.kill()


def rows_of(folder: Path, texts: list[str], *servers: FaultyServer, **settings: Any) -> list[dict[str, Any]]:
    """Have servers compute a job in this process, and return the rows of its output."""
    computed(folder, texts, *servers, **settings)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def computed(folder: Path, texts: list[str], *servers: FaultyServer, **settings: Any) -> Summary:
    """Have servers compute a job in this process; settings are of the job, or of the servers."""
    source = folder / "in.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ours = {name: settings.pop(name) for name in BulkJob.__struct_fields__ if name in settings}
    job = BulkJob(inputs=(str(source),), output=str(folder / "out.jsonl"), **ours)
    return run(job, RemoteConfig(url=tuple(server.url for server in servers), **settings), Log())
