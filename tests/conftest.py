"""What the tests share: the default model, the known answers, tiny models, and servers on free ports."""

import contextlib
import functools
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import certifi
import httpx
import llama_cpp._utils
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from embellama import EmbeddingEngine, EngineConfig, kernels
from tests.tiny import ARCHITECTURES, write_bert

pytest_plugins = ["tests.programs"]

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
REFERENCE = Path(__file__).parent / "reference"


def tracked(*folders: str) -> list[Path]:
    """List the files that git tracks below folders of the repository, in all their subfolders."""
    listed = subprocess.check_output(["git", "ls-files", "-z", *folders], cwd=ROOT, text=True)
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


# Servers of tests measure nothing at their start, and batch alike on every machine.
os.environ["EMBELLAMA_MAX_BATCH_TOKENS"] = "192"


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have HTTPX know one authority only: to read all of them takes 27 ms for each client, and no test asks any."""
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    path.write_text(first + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that share an id: pytest-xdist would run only one of them."""
    assert len({item.nodeid for item in items}) == len(items)


@functools.cache
def instruction_sets() -> list[str]:
    """List those of our kernels that can compute on this CPU, fastest first.

    Few CPUs have AMX or AVX512-BF16, so each of their kernels is tried in a process of its own first, as the library
    does. A run's summary names those that are refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = write_bert(Path(folder) / "tiny.gguf")
        program = (
            "import sys; from embellama import EmbeddingModel, EngineConfig; "
            "EmbeddingModel(EngineConfig(model_path=sys.argv[1], compute=sys.argv[2])).embed('red')"
        )

        def works(name: str) -> bool:
            return subprocess.run([sys.executable, "-c", program, path, name], capture_output=True).returncode == 0

        return [name for name in kernels.library().instruction_sets if works(name)]


def pytest_unconfigure() -> None:
    """Close what llama_cpp leaves open, of which Python would warn after the run's summary."""
    for file in (llama_cpp._utils.outnull_file, llama_cpp._utils.errnull_file):
        file.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    try:
        refused = sorted({*kernels.library().instruction_sets} - {*instruction_sets()})
    except kernels.KernelsUnusable as error:
        terminalreporter.write_line(f"not tested: our kernels, as {error}")
        return
    if refused:
        terminalreporter.write_line(
            f"not tested, as they end the process on this CPU: kernels for {', '.join(refused)}"
        )


class Reference:
    """What sentence-transformers says of 60 texts (tests/reference/make_reference.py)."""

    def __init__(self) -> None:
        answers = json.loads((REFERENCE / "minilm.json").read_text())
        self.texts: list[str] = [answer["text"] for answer in answers]
        self.ids: list[list[int]] = [answer["ids"] for answer in answers]
        self.vectors: NDArray[np.float32] = np.load(REFERENCE / "minilm.npy")


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="session")
def model_path() -> str:
    path = ROOT / "models" / "minilm.gguf"
    assert path.exists(), "run scripts/test, which fetches the default model, or scripts/download_models.py"
    return str(path)


@pytest.fixture(scope="session")
def engine(model_path: str) -> Iterator[EmbeddingEngine]:
    with EmbeddingEngine(EngineConfig(model_path=model_path, model_name="minilm", num_workers=2)) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of 100 kB with random weights, whose token "poison" makes vectors that are not numbers."""
    return str(write_bert(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


TinyModel = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return the path of a tiny model, by its name in `ARCHITECTURES`; written on first use."""
    folder = tmp_path_factory.mktemp("architectures")

    def path_of(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else ARCHITECTURES[name].write(path)

    return path_of


class Server:
    """A server process under test."""

    def __init__(self, process: psutil.Popen, log: Path, verify: ssl.SSLContext | bool = True):
        self.process = process
        self.log = log
        self.url = ""
        self.verify = verify  # how its certificate is checked

    def workers(self) -> list[psutil.Process]:
        """Return its worker processes; multiprocessing's resource tracker is none."""
        found = []
        for child in self.process.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it died just now
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def kill_worker(self) -> None:
        """Kill one worker, and wait until another process has taken its place."""
        victim, *others = self.workers()
        victim.kill()
        wait_until(lambda: len({*self.workers()} - {victim}) == 1 + len(others), "it is started again")

    def wait_ready(self) -> None:
        def ready() -> bool:
            return bool(httpx.get(f"{self.url}/health", verify=self.verify).json()["status"] == "ok")

        wait_until(ready, "every worker is ready")


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60, pause_s: float = 0.02) -> None:
    """Wait for something to become true; how long it takes decides nothing."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain until {what}"
        time.sleep(pause_s)


@contextlib.contextmanager
def running_server(
    log: Path,
    *flags: str,
    ready: bool = True,
    verify: ssl.SSLContext | bool = True,
    under: Sequence[str | Path] = (),
) -> Iterator[Server]:
    """Run embellama-server on a free port; at the end it, and all it started, must be gone.

    Args:
        ready: Wait until every worker is ready.
        verify: How its certificate is checked, if it has one.
        under: The command that runs it (`tests.watching.watched`).
    """
    command = [*under, BIN / "embellama-server", "--port", "0", *flags]
    with log.open("w") as stderr:
        server = Server(psutil.Popen(command, stderr=stderr), log, verify)
    family: list[psutil.Process] = [server.process]
    try:
        wait_until(lambda: "listening on" in log.read_text() or server.process.poll() is not None, "it listens")
        found = re.search(r"listening on (https?://[\d.:\[\]a-f]+)", log.read_text())
        assert found, log.read_text()
        server.url = found[1]
        if ready:
            server.wait_ready()
        family += server.process.children(recursive=True)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
        _, left = psutil.wait_procs(family, timeout=30)
        for process in left:
            process.kill()
        assert not left, f"still running after the server ended: {left}; its log:\n{log.read_text()}"


StartServer = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Start a server with the given flags: ``with start_server("--model-path", …) as server:``."""
    return lambda *flags, **options: running_server(tmp_path / "server.log", *flags, **options)


@pytest.fixture(scope="session")
def server(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the default model with two workers, for tests that leave it as it was."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with running_server(log, "--model-path", model_path, "--workers", "2") as server:
        yield server


def run(*command: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end and keep what it prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]
