"""What the fault tests share: servers with faults in their workers, and clients that check every answer."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.conftest import ROOT, Reference, Server, wait_until

# A 503 that may come while no worker is there, and what a client may see of a server that is gone.
N_CLIENTS = 32


class FaultyServer(Server):
    """A server whose workers have a hook (`tests.faults.hook`)."""

    batches: Path

    def n_batches(self) -> int:
        """Batches computed by all workers since the start, canaries not included."""
        return len(self.batches.read_text().split()) if self.batches.exists() else 0

    def post(self, inputs: object, **options: object) -> httpx.Response:
        body = {"model": "minilm", "input": inputs}
        return httpx.post(f"{self.url}/v1/embeddings", json=body, timeout=60, **options)  # type: ignore[arg-type]

    def health(self) -> dict[str, object]:
        return dict(httpx.get(f"{self.url}/health").json())


@contextlib.contextmanager
def faulty_server(
    folder: Path,
    *flags: str,
    hook: str = "counts",
    constants: tuple[str, ...] = (),
    n_descriptors: int = 0,
    ready: bool = True,
) -> Iterator[FaultyServer]:
    """Run a server without a cache, so that workers compute every text; at the end all it started must be gone.

    Args:
        flags: Of embellama-server.
        hook: What goes wrong in workers.
        constants: Other values for its constants (`tests.faults.entry`).
        n_descriptors: Most descriptors it may have; 0 sets no limit.
        ready: Wait until every worker is ready.
    """
    log = folder / "server.log"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'server'}",
        "EMBELLAMA_TEST_WORKER_HOOK": f"tests.faults.hook:{hook}",
        "FAULTS_BATCHES": str(folder / "batches"),
        "FAULTS_DRIFT": str(folder / "drift"),
        "FAULTS_DIE": str(folder / "die"),
    }
    command = [
        sys.executable,
        "-m",
        "tests.faults.entry",
        *constants,
        "--",
        "--port",
        "0",
        "--cache-bytes",
        "0",
        *flags,
    ]
    with log.open("w") as stderr:
        server = FaultyServer(
            psutil.Popen(command, stderr=stderr, cwd=ROOT, env=environment, preexec_fn=limited(n_descriptors)), log
        )
    server.batches = folder / "batches"
    family: set[psutil.Process] = {server.process}
    try:
        wait_until(lambda: "listening on" in log.read_text() or server.process.poll() is not None, "it listens")
        found = re.search(r"listening on (\S+)", log.read_text())
        assert found, log.read_text()
        server.url = found[1]
        if ready:
            server.wait_ready()
        yield server
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= set(server.process.children(recursive=True))
    finally:
        if server.process.poll() is None:
            server.process.terminate()
        _, left = psutil.wait_procs(list(family), timeout=30)
        for process in left:
            process.kill()
        assert not left, f"still running after the server ended: {left}; its log:\n{log.read_text()}"
        assert "Traceback" not in log.read_text(), log.read_text()


StartFaulty = Callable[..., contextlib.AbstractContextManager[FaultyServer]]


@pytest.fixture
def start_faulty(tmp_path: Path) -> StartFaulty:
    """Start a server with faults: ``with start_faulty("--model-path", …, hook="aborts") as server:``."""
    return lambda *flags, **options: faulty_server(tmp_path, *flags, **options)


@pytest.fixture
def own_model(model_path: str, tmp_path: Path) -> Path:
    """A copy of the default model that a test may delete."""
    return Path(shutil.copy(model_path, tmp_path / "minilm.gguf"))


class Crowd:
    """Clients that keep asking for known vectors, and check every answer."""

    def __init__(self, server: Server, reference: Reference, n_clients: int = N_CLIENTS):
        self.server, self.reference = server, reference
        self.answers: Counter[str] = Counter()  # by status, or what became of the call
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(n_clients)
        self._clients: list[Future[None]] = [self._threads.submit(self._ask, seed) for seed in range(n_clients)]

    def _ask(self, seed: int) -> None:
        choose = np.random.default_rng(seed)
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                picked = choose.integers(0, 40, choose.integers(1, 5))
                body = {"model": "minilm", "input": [self.reference.texts[i] for i in picked]}
                answer = client.post(f"{self.server.url}/v1/embeddings", json=body)
                if answer.status_code == 200:
                    right = are_vectors_of(answer, self.reference, picked)
                    self.answers["right" if right else "wrong"] += 1
                else:
                    self.answers[str(answer.status_code)] += 1
                    self.errors.append(answer.text)

    def wait_answers(self, n: int) -> None:
        """Wait for `n` more answers."""
        target = self.answers.total() + n
        wait_until(lambda: self.answers.total() >= target, f"{n} more answers came")

    def stop(self) -> None:
        """Stop asking and wait for the last answers."""
        self._stop.set()
        for client in self._clients:
            client.result()
        self._threads.shutdown()

    def assert_all_right(self) -> None:
        """Stop; every answer must have been right."""
        self.stop()
        assert set(self.answers) == {"right"}, (self.answers, self.errors[:3])


def are_vectors_of(answer: httpx.Response, reference: Reference, picked: "np.typing.ArrayLike") -> bool:
    """Tell whether an answer holds the vectors of those texts of the reference, in that order."""
    rows = np.array([item["embedding"] for item in answer.json()["data"]])
    expected = reference.vectors[np.asarray(picked)]
    return rows.shape == expected.shape and bool(np.sum(rows * expected, axis=1).min() > 0.999)


def limited(n_descriptors: int) -> Callable[[], None] | None:
    """Return what a process is to do first, so that it has no more descriptors than that."""
    if not n_descriptors:
        return None
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n_descriptors, n_descriptors))


def run_server(
    *flags: str, constants: tuple[str, ...] = (), n_descriptors: int = 0
) -> "subprocess.CompletedProcess[str]":
    """Run a server that cannot start, to its end; it may have so many descriptors."""
    command = [sys.executable, "-m", "tests.faults.entry", *constants, "--", "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'server'}"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment,
        check=False,
        preexec_fn=limited(n_descriptors),
    )
