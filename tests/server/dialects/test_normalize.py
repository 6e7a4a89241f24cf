"""Vectors that are not scaled, or scaled where the model scales none, in the words of each dialect."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from embellama.outputs import normalize
from tests.conftest import Server, TinyModel, running_server
from tests.forward import pooled
from tests.forward.model import Model
from tests.known import PIECES, TEXT, assert_alike

pytestmark = pytest.mark.server

TEXTS = ["red", TEXT, "one two three"]
FLAGS = ("--model-name", "tiny", "--workers", "2")

# What asks for vectors that are not scaled, and where.
UNSCALED = [
    ("/embed", {"inputs": TEXTS, "normalize": False}),
    ("/embed", {"inputs": TEXTS, "normalize": False, "truncate": True}),  # Haystack's, but for its texts
    ("/", {"inputs": TEXTS, "normalize": False}),
    ("/v1/embeddings", {"model": "tiny", "input": TEXTS, "normalized": False}),  # Jina's
    ("/v1/embeddings", {"model": "tiny", "input": TEXTS, "normalize": False}),  # vLLM's
    ("/v1/embeddings", {"model": "tiny", "input": TEXTS, "normalized": False, "encoding_format": "base64"}),
]


@pytest.fixture(scope="module", params=["l2", "none"])
def served(request: pytest.FixtureRequest, tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of a tiny model for each of two normalizations: its client, and the normalization."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--model-path", str(tiny("bert-mean")), *FLAGS, "--normalization", request.param)
    with running_server(log, *flags) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        yield http, request.param


@pytest.fixture
def http(served: tuple[httpx.Client, str]) -> httpx.Client:
    return served[0]


@pytest.fixture
def setting(served: tuple[httpx.Client, str]) -> str:
    return served[1]


def vectors_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = found if isinstance(found, list) else [item["embedding"] for item in found["data"]]
    if isinstance(rows[0], str):
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    return np.array(rows, np.float32)


def unscaled(http: httpx.Client) -> np.ndarray:
    return vectors_of(http.post("/embed", json={"inputs": TEXTS, "normalize": False}))


@pytest.mark.parametrize(("path", "body"), UNSCALED)
def test_an_unscaled_vector_is_the_pooled_one(
    http: httpx.Client, path: str, body: dict[str, Any], tiny: TinyModel
) -> None:
    rows = vectors_of(http.post(path, json=body))
    model = tiny("bert-mean")
    vocabulary = Model(model).get("tokenizer.ggml.tokens")
    assert_alike(rows[1], pooled(model, [vocabulary.index(piece) for piece in PIECES["bert-mean"]]))
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).min() > 0.01


@pytest.mark.parametrize(("path", "body"), UNSCALED)
def test_the_same_body_that_asks_for_scaling_gets_unit_vectors(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    asked = {name: True if name in ("normalize", "normalized") else value for name, value in body.items()}
    rows = vectors_of(http.post(path, json=asked))
    np.testing.assert_array_equal(rows, normalize(vectors_of(http.post(path, json=body))))


def test_a_body_that_asks_for_neither_gets_its_dialects_default(http: httpx.Client, setting: str) -> None:
    rows = unscaled(http)
    as_set = rows if setting == "none" else normalize(rows)
    tei = vectors_of(http.post("/embed", json={"inputs": TEXTS}))
    openai = vectors_of(http.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS}))
    null = vectors_of(http.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS, "normalized": None}))
    np.testing.assert_array_equal(tei, normalize(rows))
    np.testing.assert_array_equal(openai, as_set)
    np.testing.assert_array_equal(null, as_set)


def test_jinas_word_and_vllms_may_not_contradict_each_other(http: httpx.Client) -> None:
    body = {"model": "tiny", "input": TEXTS, "normalized": False, "normalize": False}
    np.testing.assert_array_equal(vectors_of(http.post("/v1/embeddings", json=body)), unscaled(http))
    assert http.post("/v1/embeddings", json={**body, "normalize": True}).status_code == 400


def test_token_ids_lines_and_bytes_obey_too(http: httpx.Client) -> None:
    rows = unscaled(http)
    ids = [[piece["id"] for piece in text] for text in http.post("/tokenize", json={"inputs": TEXTS}).json()]
    np.testing.assert_array_equal(vectors_of(http.post("/embed", json={"inputs": ids, "normalize": False})), rows)
    body = {"model": "tiny", "input": TEXTS, "normalized": False}
    sent = http.post("/v1/embeddings", json=body, headers={"accept": "application/octet-stream"})
    np.testing.assert_array_equal(np.frombuffer(sent.content, "<f4").reshape(rows.shape), rows)
    lines = http.post("/v1/embeddings", json=body, headers={"accept": "application/x-ndjson"}).text.splitlines()
    np.testing.assert_array_equal(np.array([json.loads(line)["embedding"] for line in lines[:-1]], np.float32), rows)


def test_an_unscaled_vector_is_cut_and_not_scaled_again(http: httpx.Client) -> None:
    body = {"model": "tiny", "input": TEXTS, "normalized": False, "dimensions": 5}
    np.testing.assert_array_equal(vectors_of(http.post("/v1/embeddings", json=body)), unscaled(http)[:, :5])
    body = {"inputs": TEXTS, "normalize": False, "dimensions": 5}
    np.testing.assert_array_equal(vectors_of(http.post("/embed", json=body)), unscaled(http)[:, :5])


def test_late_chunks_obey_too(http: httpx.Client) -> None:
    body = {"model": "tiny", "input": ["red three", "blue one"], "late_chunking": True}
    rows = vectors_of(http.post("/v1/embeddings", json={**body, "normalized": False}))
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).min() > 0.01
    scaled = vectors_of(http.post("/v1/embeddings", json={**body, "normalized": True}))
    np.testing.assert_array_equal(scaled, normalize(rows))


def test_int8_of_unscaled_vectors_is_refused_by_its_name(http: httpx.Client, setting: str) -> None:
    body = {"model": "tiny", "input": TEXTS, "output_dtype": "int8"}
    refused = http.post("/v1/embeddings", json={**body, "normalized": False})
    assert refused.status_code == 400
    assert "int8, which holds -1 to 1; vectors with normalization none" in refused.json()["error"]["message"]
    assert http.post("/v1/embeddings", json={**body, "normalized": True}).status_code == 200
    assert http.post("/v1/embeddings", json=body).status_code == (400 if setting == "none" else 200)
    signs = {**body, "output_dtype": "ubinary", "normalized": False}
    assert http.post("/v1/embeddings", json=signs).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed", {"inputs": "a", "normalize": "no"}, "normalize"),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "normalized": 0}, "normalized"),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "normalize": "no"}, "normalize"),
    ],
)
def test_what_is_no_bool_is_refused(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert param in answer.text


@pytest.mark.parametrize(("path", "body"), UNSCALED[:1] + UNSCALED[3:4])
def test_a_text_without_a_usable_vector_is_named(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    texts = {name: ["red", "poison"] if isinstance(value, list) else value for name, value in body.items()}
    answer = http.post(path, json=texts)
    assert answer.status_code == 500
    assert f"the model failed on {'input' if 'v1' in path else 'inputs'}[1]: " in answer.text
    assert "its vector is not finite" in answer.text


@pytest.mark.model
def test_the_default_models_vectors_are_what_they_are_before_scaling(server: Server) -> None:
    body = {"inputs": ["A cat sleeps.", "Two dogs run."]}
    rows = vectors_of(httpx.post(f"{server.url}/embed", json={**body, "normalize": False, "truncate": True}))
    scaled = vectors_of(httpx.post(f"{server.url}/embed", json=body))
    np.testing.assert_array_equal(normalize(rows), scaled)
    assert (np.linalg.norm(rows, axis=1) > 1.5).all()
