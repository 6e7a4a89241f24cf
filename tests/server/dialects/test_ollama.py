"""Ollama's names, lists and warm-up calls."""

import contextlib
import socket
from collections.abc import Iterator

import httpx
import pytest
from embellama_server.app import build_app
from embellama_server.config import ServerConfig
from embellama_server.names import with_tag, without_default_tag
from embellama_server.state import ServerState

from embellama import ConfigError
from tests.conftest import running_server

pytestmark = [pytest.mark.server]


@pytest.fixture(scope="module")
def http(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with two models, one of which has a tag in its name."""
    folder = tmp_path_factory.mktemp("ollama")
    config = folder / "models.toml"
    config.write_text(
        f"[[models]]\nmodel_path = '{tiny_path}'\nmodel_name = 'minilm'\naliases = ['nomic-embed-text:latest']\n"
        f"num_workers = 1\n[[models]]\nmodel_path = '{tiny_path}'\nmodel_name = 'x:latest'\naliases = ['y:v1.5']\n"
        "num_workers = 1\n"
    )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server(folder / "server.log", "--config", str(config)))
        yield stack.enter_context(httpx.Client(base_url=server.url, timeout=30))


NAMES = ["minilm", "minilm:latest", "nomic-embed-text", "nomic-embed-text:latest", "x", "x:latest", "y:v1.5"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        *(
            ("/v1/embeddings", "input"),
            ("/embeddings", "input"),
            ("/api/embed", "input"),
            ("/api/embeddings", "prompt"),
        ),
        *(("/tokenize", "inputs"),),
    ],
)
def test_a_name_is_the_same_with_and_without_the_default_tag(
    http: httpx.Client, path: str, field: str, name: str
) -> None:
    assert http.post(path, json={"model": name, field: "red"}).status_code == 200


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_described_by_each_of_its_names(http: httpx.Client, name: str) -> None:
    assert http.get(f"/v1/models/{name}").status_code == 200
    rerank = {"model": name, "query": "red", "documents": ["red"]}
    assert http.post("/v1/rerank", json=rerank).status_code == 200
    assert http.post("/v2/rerank", json=rerank).status_code == 200


@pytest.mark.parametrize("name", ["minilm:v2", "y", "y:latest", "x:latest:latest:latest", ":latest"])
def test_another_tag_is_another_name(http: httpx.Client, name: str) -> None:
    answer = http.post("/api/embed", json={"model": name, "input": "red"})
    assert (answer.status_code, type(answer.json()["error"])) == (404, str)
    assert http.post("/v1/embeddings", json={"model": name, "input": "red"}).status_code == 404


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps"])
def test_every_model_is_listed_with_one_tag_and_a_digest(http: httpx.Client, path: str) -> None:
    models = http.get(path).json()["models"]
    assert [model["name"] for model in models] == ["minilm:latest", "x:latest"]
    for model in models:
        assert len(bytes.fromhex(model["digest"])) == 32
        assert model["details"]["family"] == "bert"


@pytest.mark.parametrize("field", ["model", "name"])
def test_show_tells_what_open_webui_and_anythingllm_ask_for(http: httpx.Client, field: str) -> None:
    shown = http.post("/api/show", json={field: "minilm:latest", "verbose": False}).json()
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["general.architecture"] == "bert"
    assert (shown["model_info"]["bert.embedding_length"], shown["model_info"]["bert.context_length"]) == (32, 64)
    assert shown["model_info"]["general.parameter_count"] > 0
    assert shown["details"]["format"] == "gguf"


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}])
def test_show_of_no_model_is_refused(http: httpx.Client, body: dict[str, object]) -> None:
    answer = http.post("/api/show", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "model is missing"})


@pytest.mark.parametrize(
    ("path", "field", "empty"), [("/api/embed", "input", "embeddings"), ("/api/embeddings", "prompt", "embedding")]
)
@pytest.mark.parametrize("given", [{}, {"keep_alive": "5m"}, {"FIELD": None}, {"FIELD": ""}])
def test_a_warm_up_without_a_text_gets_no_vectors(
    http: httpx.Client, path: str, field: str, empty: str, given: dict[str, object]
) -> None:
    body = {field if name == "FIELD" else name: value for name, value in given.items()}
    answer = http.post(path, json={"model": "minilm", **body})
    assert (answer.status_code, answer.json()[empty]) == (200, [])
    unknown = http.post(path, json={"model": "no such model", **body})
    assert (unknown.status_code, type(unknown.json()["error"])) == (404, str)


def test_a_list_of_no_texts_gets_no_vectors(http: httpx.Client) -> None:
    assert http.post("/api/embed", json={"model": "minilm", "input": []}).json()["embeddings"] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/chat", 404), ("POST", "/api/pull", 404), ("GET", "/api/embed", 405), ("DELETE", "/api/tags", 405)],
)
def test_what_is_not_under_api_is_told_in_ollamas_words(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, list(answer.json()), type(answer.json()["error"])) == (status, ["error"], str)


async def test_a_mistake_of_our_own_under_api_is_told_in_ollamas_words(
    state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("embellama_server.web.ollama._listed", broken)
    transport = httpx.ASGITransport(build_app(state), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/api/tags")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})


def test_bodies_that_are_refused_are_told_in_ollamas_words(http: httpx.Client) -> None:
    for status, answer in {
        413: http.post("/api/embed", content=b" " * (9 * 1024 * 1024)),
        415: http.post("/api/embed", content=b"{}", headers={"content-encoding": "gzip"}),
        400: http.post("/api/embed", content=b"{"),
        404: http.post("/api/embed", json={"model": "no such"}),
    }.items():
        assert (answer.status_code, list(answer.json()), type(answer.json()["error"])) == (status, ["error"], str)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (
            b"POST /api/embed HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nno length\r\n",
            b"Invalid HTTP request received.",
        ),
        (b"GET /api/tags HTTP/1.1\r\nx-large: " + b"x" * 70_000, b"the request's head has more than 65536 bytes"),
    ],
)
def test_what_is_no_http_under_api_is_told_in_ollamas_words(http: httpx.Client, sent: bytes, says: bytes) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port or 80), timeout=10) as connection:
        connection.sendall(sent)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.endswith(b'{"error":"%s"}' % says)


def test_two_models_may_not_have_names_that_differ_by_the_default_tag_alone(tiny_path: str) -> None:
    tables = ({"model_path": tiny_path, "model_name": "x"}, {"model_path": tiny_path, "model_name": "x:latest"})
    with pytest.raises(ConfigError, match="'x' names two models"):
        ServerConfig(models=tables).checked().pools()


@pytest.mark.parametrize(
    ("name", "tagged"),
    [("minilm", "minilm:latest"), ("x:latest", "x:latest"), ("x:v1", "x:v1"), ("host:5000/x", "host:5000/x:latest")],
)
def test_names_get_one_tag(name: str, tagged: str) -> None:
    assert with_tag(name) == tagged
    assert with_tag(without_default_tag(tagged)) == tagged
