"""What docs/security.md promises: nothing connects to what was not asked for (strace watches), no text is logged."""

import sys
from pathlib import Path

import httpx
import pytest

from tests.collector import Collector
from tests.conftest import BIN, StartServer, run
from tests.watching import peers, traced, watched

CONNECTS = """
import socket
socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
socket.socket().connect_ex(("127.0.0.1", 1))
socket.socket(socket.AF_INET6).connect_ex(("2001:db8::1", 443))
"""

LIBRARY = """
import sys
from embellama import EmbeddingEngine, EngineConfig
with EmbeddingEngine(EngineConfig(model_path=sys.argv[1], num_workers=2)) as engine:
    engine.embed_batch(None, ["red green", "blue"])
"""

# Imports every package that an extra brings.
EXTRAS = """
import importlib.metadata, re
for line in importlib.metadata.requires("embellama"):
    files = importlib.metadata.files(re.match(r"[\\w.-]+", line)[0])
    packages = {file.parts[0] for file in files if file.name == "__init__.py" and len(file.parts) == 2}
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:  # an adapter for a package that nobody asked for: duckdb has one for adbc
            assert len(packages) > 1 and error.name not in packages, package
"""

COMMANDS: dict[str, tuple[str | Path, ...]] = {
    "the library": (sys.executable, "-c", LIBRARY, "MODEL"),
    "the extras": (sys.executable, "-c", EXTRAS),
    "embed": (BIN / "embellama", "embed", "--model-path", "MODEL", "red green"),
    "inspect": (BIN / "embellama", "inspect", "MODEL"),
    "devices": (BIN / "embellama", "devices"),
    "bench": (BIN / "embellama", "bench", "--seconds", "1", "--chart", "chart.svg", "MODEL"),
}


def test_the_watch_sees_connections_and_messages(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run(*watched(log, sys.executable, "-W", "ignore", "-c", CONNECTS)).returncode == 0
    assert peers(traced(log)) == {("127.0.0.1", 9), ("127.0.0.1", 1), ("2001:db8::1", 443)}


@pytest.mark.model
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_connect_to_nothing(
    name: str, tiny_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "bench":  # it keeps its report
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [tiny_path if part == "MODEL" else part for part in COMMANDS[name]]
    done = run(*watched(tmp_path / "log", *command), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert peers(traced(tmp_path / "log")) == set()


@pytest.mark.model
@pytest.mark.server
def test_the_server_connects_to_nothing(start_server: StartServer, tiny_path: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start_server("--model-path", tiny_path, "--workers", "2", under=watched(log)) as server:
        for path in ("/", "/v1/models", "/docs", "/openapi.json", "/metrics", "/health"):
            assert httpx.get(f"{server.url}{path}").status_code == 200
        for _ in range(8):
            assert httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red"}).status_code == 200
    assert peers(traced(log)) == set()


@pytest.mark.model
@pytest.mark.server
def test_a_traced_server_connects_to_its_collector_only(
    start_server: StartServer, tiny_path: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    flags = ("--model-path", tiny_path, "--workers", "1")
    with Collector() as collector:
        with start_server(*flags, "--otlp-endpoint", collector.url, under=watched(log)) as server:
            assert httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red"}).status_code == 200
        assert peers(traced(log)) == {collector.address}


@pytest.mark.model
@pytest.mark.server
def test_no_text_is_logged(start_server: StartServer, tiny_path: str) -> None:
    secret = "xyzzyplugh"
    flags = ("--model-path", tiny_path, "--workers", "1", "--log-level", "debug", "--access-log")
    with start_server(*flags) as server:
        statuses = [
            httpx.post(f"{server.url}/v1/embeddings", json=body).status_code
            for body in (
                {"model": "tiny", "input": secret},
                {"model": "tiny", "input": f"poison {secret}"},
                {"model": "tiny", "input": f"{secret} " * 1000},
                {"model": "tiny", "input": secret, "dimensions": secret},
                {"model": secret, "input": secret},
            )
        ]
        assert statuses == [200, 500, 400, 400, 404]
        assert "/v1/embeddings" in server.log.read_text()
        assert secret not in server.log.read_text()
