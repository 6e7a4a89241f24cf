"""Models that are loaded, swapped and unloaded while the server runs, by real requests of an administrator."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from embellama_server.app import build_app
from embellama_server.state import ServerState

from embellama.errors import ConfigError
from tests.conftest import Server, StartServer, running_server, wait_until
from tests.tiny import write_bert

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, one of which gives zeros, with a link that leads out of it."""
    folder = tmp_path_factory.mktemp("models")
    write_bert(folder / "one.gguf")
    write_bert(folder / "two.gguf", gain=1)
    write_bert(folder / "zeros.gguf", zero=True)
    (folder / "text.gguf").write_text("no model")
    (folder / "prompts.toml").write_text("")
    (folder / "out.gguf").symlink_to("/etc/hostname")
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> Iterator[Server]:
    flags = ("--model-path", str(folder / "one.gguf"), "--model-name", "tiny", "--aliases", "also", "--workers", "1")
    with running_server(folder / "log", *flags, "--models-dir", str(folder)) as server:
        yield server


def put(server: Server, name: str, **settings: Any) -> httpx.Response:
    return httpx.put(f"{server.url}/admin/models/{name}", json=settings, timeout=60)


def delete(server: Server, name: str) -> httpx.Response:
    return httpx.delete(f"{server.url}/admin/models/{name}")


def served(server: Server) -> dict[str, str]:
    """Return the file of each model that is served."""
    models = httpx.get(f"{server.url}/admin/models").json()["data"]
    return {each["model"]["id"]: Path(each["path"]).name for each in models}


def vector(server: Server, model: str) -> list[float]:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": model, "input": "red cat"})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"][0]["embedding"])


def test_a_swap_fails_no_request_and_leaves_nothing_of_the_old_model(target: Server) -> None:
    stop = threading.Event()
    old = vector(target, "tiny")
    assert put(target, "tiny", path="two.gguf").json()["model"]["aliases"] == ["also"]
    vectors = {"one.gguf": old, "two.gguf": vector(target, "tiny")}
    assert vectors["one.gguf"] != vectors["two.gguf"]

    def ask(streams: bool) -> int:
        """Ask until told to stop, in each answer for the same vector; return how many answers there were."""
        accept = {"accept": "application/x-ndjson"} if streams else {}
        n = 0
        with httpx.Client(base_url=target.url, timeout=60) as http:
            while not stop.is_set():
                body = {"model": "also", "input": ["red cat"] * (600 if streams else 1)}
                answer = http.post("/v1/embeddings", json=body, headers=accept)
                assert answer.status_code == 200, answer.text
                rows = answer.text.splitlines()[:-1] if streams else [answer.text]
                assert len({row[row.index("[") : row.index("]")] for row in rows}) <= 2  # rounding
                assert "error" not in answer.text
                n += 1
        return n

    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask, streams) for streams in [True, *[False] * 7]]
        try:
            for file in ("one.gguf", "two.gguf"):
                answer = put(target, "tiny", path=file)
                assert answer.status_code == 200, answer.text
                assert vector(target, "tiny") == pytest.approx(vectors[file], abs=1e-3)
        finally:
            stop.set()
        assert min(client.result() for client in asking) > 0
    wait_until(lambda: target.log.read_text().count("unloaded 'tiny'") == 3, "their last requests are answered")
    assert len(target.workers()) == 1
    files_open = [str(fd.readlink()) for fd in Path(f"/proc/{target.process.pid}/fd").iterdir()]
    assert len([file for file in files_open if "embellama-weights" in file]) == 1  # the workers of each model share one


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "path is None"),
        ({"path": "/etc/hostname"}, "path is '/etc/hostname': that is outside"),
        ({"path": "../one.gguf"}, "path is '../one.gguf': that is outside"),
        ({"path": "out.gguf"}, "path is 'out.gguf': that is outside"),
        ({"path": "no.gguf"}, "path is 'no.gguf': there is no such file"),
        ({"path": "text.gguf"}, "cannot load"),
        ({"path": "zeros.gguf"}, "cannot load"),
        ({"path": "one.gguf", "prompts_file": "/etc/passwd"}, "prompts_file is '/etc/passwd': that is outside"),
        ({"path": "one.gguf", "model_path": "two.gguf"}, "model_path: "),
        ({"path": "one.gguf", "host": "::"}, "host is no setting of a model"),
        ({"path": "one.gguf", "n_ctx": -1}, "n_ctx is -1"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_old_model_stays(
    target: Server, settings: dict[str, Any], told: str
) -> None:
    before, wanted = served(target), vector(target, "tiny")
    answer = put(target, "tiny", **settings)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(told)
    assert served(target) == before
    assert vector(target, "tiny") == wanted


def test_models_come_and_go(target: Server) -> None:
    n_metrics = httpx.get(f"{target.url}/metrics").text.count("embellama_workers{")
    answer = put(target, "org/more", path="two.gguf", aliases=["another"], normalization="none")
    assert answer.json()["model"]["normalization"] == "none"
    assert vector(target, "another") == vector(target, "org/more") != vector(target, "tiny")
    assert [each["id"] for each in httpx.get(f"{target.url}/v1/models").json()["data"]] == ["tiny", "org/more"]
    assert httpx.get(f"{target.url}/metrics").text.count("embellama_workers{") == n_metrics + 1

    assert put(target, "another", path="one.gguf").status_code == 409
    assert put(target, "third", path="one.gguf", aliases=["also:latest"]).status_code == 409
    assert delete(target, "another").status_code == 409
    assert delete(target, "nothing").status_code == 404
    assert delete(target, "org/more").json() == {"id": "org/more", "object": "model", "deleted": True}
    assert delete(target, "tiny").status_code == 409
    assert httpx.get(f"{target.url}/metrics").text.count("embellama_workers{") == n_metrics
    assert served(target).keys() == {"tiny"}
    wait_until(lambda: len(target.workers()) == 1, "its worker is gone")


def test_one_model_is_loaded_at_a_time(target: Server) -> None:
    def loading() -> bool:
        return bool(httpx.get(f"{target.url}/admin/models").json()["loading"] == "tiny")

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(put, target, "tiny", path="one.gguf")
        wait_until(loading, "it is loading")
        for answer in (put(target, "more", path="one.gguf"), delete(target, "tiny")):
            assert answer.status_code == 409
            assert "'tiny' is being loaded" in answer.json()["error"]["message"]
        assert first.result().status_code == 200


def test_models_are_changed_only_where_there_is_a_folder_for_them(server: Server) -> None:
    for answer in (put(server, "minilm", path="x"), delete(server, "minilm"), httpx.get(f"{server.url}/admin/models")):
        assert answer.status_code == 404
        assert "--models-dir" in answer.json()["error"]["message"]


def test_a_folder_that_is_not_there_is_refused(state: ServerState) -> None:
    state.config = msgspec.structs.replace(state.config, models_dir="/no")
    with pytest.raises(ConfigError, match="models_dir is '/no': there is no such folder"):
        build_app(state)


def test_the_server_stops_while_it_loads_a_model(start_server: StartServer, folder: Path) -> None:
    flags = ("--model-path", str(folder / "one.gguf"), "--workers", "1", "--models-dir", str(folder))
    with start_server(*flags) as server, ThreadPoolExecutor(1) as threads:
        loading = threads.submit(put, server, "more", path="two.gguf", num_workers=4)
        wait_until(lambda: len(server.workers()) > 1, "its workers start")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        assert loading.result().status_code in (200, 503)
        assert "Traceback" not in server.log.read_text()
