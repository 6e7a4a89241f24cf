"""Texts that crash or stall llama.cpp's tokenizer: each is answered or named, and nobody else notices."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server, TinyModel, running_server
from tests.tiny import write_qwen2

pytestmark = [pytest.mark.server]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny: TinyModel) -> Iterator[Server]:
    """A server of two models: one whose words std::regex finds, one whose tokenizer stalls on unknown characters."""
    folder = tmp_path_factory.mktemp("hazards")
    regex = write_qwen2(folder / "regex.gguf", pre="granite-embed-multi-97m")
    config = folder / "models.toml"
    paths = (regex, tiny("gemma-embedding"))
    tables = [f"[[models]]\nmodel_path = '{path}'\nmodel_name = '{path.stem}'\nnum_workers = 1\n" for path in paths]
    config.write_text("".join(tables))
    with running_server(folder / "server.log", "--config", str(config)) as server:
        yield server


@pytest.fixture
def target(shared: Server) -> Iterator[Server]:
    """A server that must be as well after the test as before."""
    workers = shared.workers()
    yield shared
    assert httpx.get(f"{shared.url}/health").json()["status"] == "ok"
    assert set(workers) <= set(shared.workers())  # and the tokenizer's own process, which is none of them


def post(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("text", ["a" * 36_000, "漢" * 300_000, " " * 36_000, "." * 300_000])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["red", "TEXT"], "truncate": "end"}),
        ("/v1/embeddings", {"input": ["red", "TEXT"], "truncate": "start", "encoding_format": "base64"}),
        ("/v2/embed", {"texts": ["red", "TEXT"], "embedding_types": ["float"]}),
        ("/api/embed", {"input": ["red", "TEXT"]}),
        ("/embed", {"inputs": ["red", "TEXT"], "truncate": True}),
        ("/v1/rerank", {"query": "red", "documents": ["red", "TEXT"], "truncate": "end"}),
    ],
)
def test_a_long_word_is_embedded(target: Server, path: str, body: dict[str, Any], text: str) -> None:
    body = {
        "model": "regex",
        **{
            name: [text if item == "TEXT" else item for item in value] if isinstance(value, list) else value
            for name, value in body.items()
        },
    }
    answer = post(target, path, body)
    assert answer.status_code == 200, answer.text[:300]


def test_a_long_word_is_shown_as_tokens(target: Server) -> None:
    answer = post(target, "/tokenize", {"model": "regex", "inputs": "a" * 36_000, "add_special_tokens": False})
    assert [piece["stop"] for piece in answer.json()[0]] == list(range(1, 36_001))


def test_a_text_that_is_too_long_is_refused_by_its_head(target: Server) -> None:
    answer = post(target, "/v1/embeddings", {"model": "regex", "input": ["red", "a" * 300_000]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.json()["error"]["index"] == 1


@pytest.mark.parametrize(
    ("model", "text", "why"),
    [("regex", "a" * 7_000_000, "SIGSEGV"), ("gemma-embedding", "漢" * 300_000, "no answer in")],
)
def test_a_text_that_cannot_be_tokenized_is_named(target: Server, model: str, text: str, why: str) -> None:
    answer = post(target, "/v1/embeddings", {"model": model, "input": ["red", text, "blue"], "truncate": "end"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["index"]) == (400, "input", 1)
    assert error["message"].startswith("text 1 cannot be tokenized")
    assert why in error["message"]


def test_a_text_that_cannot_be_shown_as_tokens_is_named(target: Server) -> None:
    answer = post(target, "/tokenize", {"model": "gemma-embedding", "inputs": ["red", "漢" * 290_000]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith("text 1 cannot be tokenized")


def test_others_are_answered_while_a_text_stalls_the_tokenizer(target: Server) -> None:
    stalled = threading.Thread(
        target=post,
        args=(target, "/v1/embeddings", {"model": "gemma-embedding", "input": ["漢" * 300_000], "truncate": "end"}),
    )
    stalled.start()
    answers = []
    while stalled.is_alive():
        for model in ("regex", "gemma-embedding"):
            answers.append(post(target, "/v1/embeddings", {"model": model, "input": "red " * 100, "truncate": "end"}))
    assert len(answers) >= 2
    assert {answer.status_code for answer in answers} == {200}


def test_a_server_stops_while_a_text_stalls_its_tokenizer(tiny: TinyModel, tmp_path: Path) -> None:
    flags = ("--model-path", str(tiny("gemma-embedding")), "--workers", "1", "--drain-timeout-ms", "300")
    with running_server(tmp_path / "server.log", *flags) as server:
        body = {"model": "gemma-embedding", "input": ["漢" * 300_000] * 8, "truncate": "end"}
        client = threading.Thread(target=post, args=(server, "/v1/embeddings", body))
        client.start()
        while client.is_alive():
            if any("isolated" in " ".join(child.cmdline()) for child in server.process.children()):
                break
        server.process.terminate()
        assert server.process.wait(timeout=10) == 0
        client.join()
