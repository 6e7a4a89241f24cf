"""Every dialect gives the same vectors, in its own words; a real server, plain HTTP. Real clients: test_clients.py."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embellama import EmbeddingEngine, EngineConfig
from embellama.outputs import quantize
from tests.conftest import Reference, Server, TinyModel, running_server
from tests.tiny import ARCHITECTURES

pytestmark = pytest.mark.server

TEXTS = ["A cat sleeps.", "Two dogs run through the snow.", "Das ist ein Satz."]


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def asked(http: httpx.Client, path: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    answer = http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def openai(http: httpx.Client, texts: list[str] = TEXTS, **fields: Any) -> np.ndarray:
    answer = asked(http, "/v1/embeddings", model="minilm", input=texts, encoding_format="base64", **fields)
    return np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]])


@pytest.mark.model
def test_every_dialect_gives_the_same_vectors_to_the_bit(http: httpx.Client) -> None:
    expected = openai(http)
    cohere = asked(http, "/v2/embed", model="minilm", texts=TEXTS, embedding_types=["float"])
    found = {
        "openai": [item["embedding"] for item in asked(http, "/embeddings", model="minilm", input=TEXTS)["data"]],
        "cohere": cohere["embeddings"]["float"],
        "tei": asked(http, "/embed", inputs=TEXTS),
        "ollama": asked(http, "/api/embed", model="minilm:latest", input=TEXTS)["embeddings"],
        "jina": [
            item["embedding"]
            for item in asked(http, "/v1/embeddings", model="minilm", input=[{"text": text} for text in TEXTS])["data"]
        ],
    }
    for dialect, rows in found.items():
        np.testing.assert_array_equal(np.array(rows, np.float32), expected, dialect)
    one = asked(http, "/api/embeddings", model="minilm", prompt=TEXTS[0])["embedding"]
    np.testing.assert_allclose(np.array(one, np.float32), expected[0], atol=2e-3)


# Of any script, control characters included; a surrogate is no character, and a blank text is refused.
any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())


@pytest.mark.model
@given(text=any_text)
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_any_text_has_one_vector_in_every_dialect(http: httpx.Client, text: str) -> None:
    if http.post("/embed", json={"inputs": text}).status_code == 400:
        return  # to the model it is empty
    expected = openai(http, [text])[0]
    for found in (
        asked(http, "/v1/embeddings", model="minilm", input=text)["data"][0]["embedding"],
        asked(http, "/v1/embeddings", model="minilm", input=[{"text": text}])["data"][0]["embedding"],
        asked(http, "/v2/embed", model="minilm", texts=[text])["embeddings"]["float"][0],
        asked(http, "/embed", inputs=text)[0],
        asked(http, "/api/embed", model="minilm", input=text)["embeddings"][0],
        asked(http, "/api/embeddings", model="minilm", prompt=text)["embedding"],
    ):
        np.testing.assert_array_equal(np.array(found, np.float32), expected)
    for name in ("int8", "ubinary"):
        found = asked(http, "/v2/embed", model="minilm", texts=[text], embedding_types=[name])["embeddings"][name]
        np.testing.assert_array_equal(found, quantize(expected[None], name))


@pytest.mark.model
def test_dtypes_are_those_of_the_library(http: httpx.Client) -> None:
    rows = openai(http)
    names = ["float", "float16", "int8", "uint8", "binary", "ubinary"]
    several = asked(http, "/v1/embeddings", model="minilm", input=TEXTS, output_dtype=names)["data"]
    for name in names:
        expected = quantize(rows, "float32" if name == "float" else name)  # type: ignore[arg-type]
        alone = asked(http, "/v1/embeddings", model="minilm", input=TEXTS, output_dtype=name)["data"]
        packed = asked(
            http, "/v1/embeddings", model="minilm", input=TEXTS, output_dtype=name, encoding_format="base64"
        )["data"]
        for i, row in enumerate(expected):
            np.testing.assert_array_equal(np.array(several[i]["embedding"][name], expected.dtype), row)
            np.testing.assert_array_equal(np.array(alone[i]["embedding"], expected.dtype), row)
            np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed[i]["embedding"]), expected.dtype), row)
    cohere = asked(http, "/v2/embed", model="minilm", texts=TEXTS, embedding_types=["int8", "ubinary"])["embeddings"]
    np.testing.assert_array_equal(np.array(cohere["int8"], np.int8), quantize(rows, "int8"))
    np.testing.assert_array_equal(np.array(cohere["ubinary"], np.uint8), quantize(rows, "ubinary"))


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float", "int8", "ubinary"])
def test_binary_answers_say_their_shape_and_dtype(http: httpx.Client, dtype: str) -> None:
    answer = http.post(
        "/v1/embeddings",
        json={"model": "minilm", "input": TEXTS, "output_dtype": dtype},
        headers={"accept": "application/octet-stream"},
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    shape = tuple(map(int, answer.headers["x-embedding-shape"].split(",")))
    rows = np.frombuffer(answer.content, answer.headers["x-embedding-dtype"]).reshape(shape)
    expected = quantize(openai(http), "float32" if dtype == "float" else dtype)  # type: ignore[arg-type]
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.model
def test_lines_come_in_input_order_with_the_same_vectors(http: httpx.Client, reference: Reference) -> None:
    texts = (reference.texts * 5)[:250]
    body = {"model": "minilm", "input": texts}
    with http.stream("POST", "/v1/embeddings", json=body, headers={"accept": "application/x-ndjson"}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        *items, last = [json.loads(line) for line in answer.iter_lines()]
    assert [item["index"] for item in items] == list(range(250))
    rows = np.array([item["embedding"] for item in items], np.float32)
    known = np.tile(reference.vectors, (5, 1))[:250]
    assert np.sum(rows * known, axis=1).min() > 0.999
    assert last["usage"]["total_tokens"] == sum(len(ids) for ids in (reference.ids * 5)[:250])


@pytest.mark.model
def test_late_chunking_reads_the_parts_as_one_text(http: httpx.Client, engine: EmbeddingEngine) -> None:
    parts = ["Berlin is the capital of Germany. ", "It has 3.8 million inhabitants.", "They like it."]
    rows = openai(http, parts, late_chunking=True)
    whole = "Berlin is the capital of Germany. It has 3.8 million inhabitants. They like it."
    spans = [(whole.index(part.strip()), whole.index(part.strip()) + len(part.strip())) for part in parts]
    expected = engine.embed_chunks("minilm", whole, character_spans=spans).vectors
    assert np.sum(rows * expected, axis=1).min() > 0.9999


@pytest.mark.model
def test_truncation_is_asked_for_in_each_dialects_way(http: httpx.Client) -> None:
    long = "word " * 600
    cut = asked(http, "/v1/embeddings", model="minilm", input=[long, "a"], truncate="end", return_truncated=True)
    assert (cut["truncated"], cut["n_tokens"]) == ([602 - 512, 0], [512, 3])
    expected = np.array(cut["data"][0]["embedding"], np.float32)
    found = [
        asked(http, "/v1/embeddings", model="minilm", input=long, truncation=True)["data"][0]["embedding"],
        asked(http, "/v2/embed", model="minilm", texts=[long])["embeddings"]["float"][0],
        asked(http, "/embed", inputs=long, truncate=True)[0],
        asked(http, "/api/embed", model="minilm", input=long)["embeddings"][0],
    ]
    for row in found:
        assert np.array(row, np.float32) @ expected > 0.9999
    assert http.post("/embed", json={"inputs": long}).status_code == 400
    assert http.post("/api/embed", json={"model": "minilm", "input": long, "truncate": False}).status_code == 400
    assert http.post("/v2/embed", json={"model": "minilm", "texts": [long], "truncate": "NONE"}).status_code == 400


@pytest.mark.model
def test_a_vector_for_each_token(http: httpx.Client, engine: EmbeddingEngine) -> None:
    found = asked(http, "/embed_all", inputs=TEXTS)
    for text, rows in zip(TEXTS, found, strict=True):
        expected = engine.embed_tokens("minilm", text)
        assert np.array(rows).shape == expected.shape
        assert np.sum(np.array(rows) * expected, axis=1).min() > 0.999


@pytest.mark.model
def test_ranking_by_cosine_is_sentence_transformers_order(http: httpx.Client, reference: Reference) -> None:
    query, documents = reference.texts[0], reference.texts[1:31]
    cosines = reference.vectors[1:31] @ reference.vectors[0]
    expected = np.argsort(-cosines).tolist()
    answers: dict[str, list[dict[str, Any]]] = {
        "jina": asked(http, "/v1/rerank", model="minilm", query=query, documents=documents)["results"],
        "voyage": asked(http, "/v1/rerank", model="minilm", query=query, documents=documents, top_k=30)["data"],
        "cohere": asked(http, "/v2/rerank", model="minilm", query=query, documents=documents)["results"],
        "tei": [
            {"index": each["index"], "relevance_score": each["score"]}
            for each in asked(http, "/rerank", query=query, texts=documents)
        ],
    }
    for dialect, results in answers.items():
        scores = np.array([each["relevance_score"] for each in results])
        assert (np.diff(scores) <= 0).all(), dialect
        order = [each["index"] for each in results]
        np.testing.assert_allclose(scores, cosines[order], atol=2e-3, err_msg=dialect)
        assert order[0] == expected[0], dialect
    top = asked(http, "/v1/rerank", query=query, documents=documents, top_n=2, return_documents=True)["results"]
    assert [each["document"]["text"] for each in top] == [documents[each["index"]] for each in top]
    assert len(top) == 2


@pytest.mark.model
def test_similarity_is_the_cosine(http: httpx.Client, reference: Reference) -> None:
    inputs = {"source_sentence": reference.texts[0], "sentences": reference.texts[1:10]}
    found = asked(http, "/similarity", inputs=inputs)
    np.testing.assert_allclose(found, reference.vectors[1:10] @ reference.vectors[0], atol=2e-3)


def test_a_reranker_is_served_with_the_engines_scores(tiny: TinyModel, tmp_path: Path) -> None:
    name = next(name for name, each in ARCHITECTURES.items() if each.reranker)
    path = str(tiny(name))
    query, documents = "red cat", ["blue dog", "red cat", "a"]
    with EmbeddingEngine(EngineConfig(model_path=path, model_name="r", num_workers=1)) as engine:
        expected = engine.rerank("r", query, documents)
    flags = ("--model-path", path, "--model-name", "r", "--workers", "2")
    with running_server(tmp_path / "log", *flags) as server, httpx.Client(base_url=server.url) as http:
        found = asked(http, "/v1/rerank", model="r", query=query, documents=documents)
        raw = asked(http, "/rerank", query=query, texts=documents, raw_scores=True)
        sigmoid = asked(http, "/rerank", query=query, texts=documents)
        refused = http.post("/v1/embeddings", json={"model": "r", "input": "a"})
    assert found["method"] == "cross-encoder"
    assert [each["index"] for each in found["results"]] == [each.index for each in expected.results]
    scores = [each.relevance_score for each in expected.results]
    np.testing.assert_allclose([each["relevance_score"] for each in found["results"]], scores, atol=1e-3)
    np.testing.assert_allclose([each["score"] for each in raw], scores, atol=1e-3)
    np.testing.assert_allclose([each["score"] for each in sigmoid], 1 / (1 + np.exp(-np.array(scores))), atol=1e-3)
    assert refused.status_code == 400
    assert "reranker" in refused.json()["error"]["message"]


@pytest.mark.model
def test_texts_to_tokens_and_back(http: httpx.Client, reference: Reference) -> None:
    text, ids = "Hello, wörld!", [101, 7592, 1010, 2088, 999, 102]
    (pieces,) = asked(http, "/tokenize", inputs=text)
    assert [piece["id"] for piece in pieces] == ids
    assert [piece["special"] for piece in pieces] == [True, False, False, False, False, True]
    assert [text[piece["start"] : piece["stop"]] for piece in pieces[1:-1]] == ["Hello", ",", "wörld", "!"]
    assert asked(http, "/tokenize", inputs=[text], add_special_tokens=False) == [pieces[1:-1]]
    assert asked(http, "/decode", ids=ids) == ["hello, world!"]
    assert asked(http, "/decode", ids=[ids], skip_special_tokens=False) == ["[CLS] hello, world! [SEP]"]
    assert asked(http, "/detokenize", tokens=ids) == {"content": "hello, world!"}
    for path, field in (("/tokenize", "inputs"), ("/detokenize", "tokens")):
        too_many = http.post(path, json={field: 300_001 * ("a" if field == "inputs" else [5])})
        assert too_many.status_code == 400
        assert "has 300001 characters or token ids; the limit is 300000" in too_many.text
    refused = http.post("/detokenize", json={"tokens": [30522]})
    assert refused.status_code == 400
    assert "30522" in refused.json()["error"]["message"]


@pytest.mark.model
@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/embeddings", {"model": "no", "input": "a"}, {"error", "detail"}),
        ("/v2/embed", {"model": "no", "texts": ["a"]}, {"id", "message"}),
        ("/api/embed", {"model": "no", "input": "a"}, {"error"}),
        ("/embed", {"inputs": ["a", ""]}, {"error", "error_type"}),
        ("/rerank", {"query": "", "texts": ["a"]}, {"error", "error_type"}),
        ("/v1/rerank", {"query": "a", "documents": []}, {"error", "detail"}),
        ("/v2/rerank", {"model": "minilm", "query": "a", "documents": ["a"], "top_n": 0}, {"message", "id"}),
        ("/tokenize", {"inputs": []}, {"error", "error_type"}),
    ],
)
def test_errors_have_each_dialects_shape(http: httpx.Client, path: str, body: dict[str, Any], shape: set[str]) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == (404 if body.get("model") == "no" else 400)
    assert answer.json().keys() == shape
    error = answer.json().get("error")
    assert isinstance(error, dict) == (path.startswith("/v1"))


@pytest.mark.model
def test_a_request_has_a_limit_on_its_tokens(model_path: str, tmp_path: Path) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-request-tokens", "100")
    with running_server(tmp_path / "log", *flags) as server:
        good = httpx.post(f"{server.url}/v1/embeddings", json={"model": "minilm", "input": ["a"] * 33})
        bad = httpx.post(f"{server.url}/v1/embeddings", json={"model": "minilm", "input": ["a"] * 34})
    assert good.status_code == 200
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "max_tokens_per_request")
    assert "102 tokens" in bad.json()["error"]["message"]
    assert "100" in bad.json()["error"]["message"]


@pytest.mark.model
def test_methods_and_pages(http: httpx.Client) -> None:
    options = http.options("/v1/embeddings")
    assert (options.status_code, options.headers["allow"]) == (204, "POST")
    head = http.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["dimensions"], model["max_input_tokens"], model["pooling"]) == (
        "minilm",
        384,
        512,
        "mean",
    )
    assert http.get("/v1/models/minilm").json() == model
    assert http.get("/v1/models/no").status_code == 404
    assert http.get("/info").json()["max_input_length"] == 512
    assert http.get("/api/tags").json()["models"][0]["name"] == "minilm:latest"
    assert http.get("/livez").text == http.get("/readyz").text == "ok"
    page = http.get("/docs").text
    assert "/v1/embeddings" in page
    assert "://" not in page, "nothing is fetched from elsewhere"


@pytest.mark.model
def test_answers_carry_an_id_and_times(http: httpx.Client) -> None:
    body = {"model": "minilm", "input": TEXTS}
    answer = http.post("/v1/embeddings", json=body, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert http.post("/v1/embeddings", json=body).headers["x-request-id"] not in ("", "abc-1")
    assert answer.headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    assert int(answer.headers["x-compute-tokens"]) == answer.json()["usage"]["total_tokens"]
    parts = [float(answer.headers[f"x-{name}-time"]) for name in ("tokenization", "queue", "inference")]
    assert sum(parts) <= float(answer.headers["x-total-time"]) + 0.3
    assert http.post("/v1/embeddings", json={}).headers["x-request-id"]
