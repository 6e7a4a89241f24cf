"""Fields of every dialect: used or refused, null where they may be, and named in errors as they were sent."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import running_server
from tests.tiny import POISON

pytestmark = [pytest.mark.server]

LONG = "red " * 100  # the model reads 64 tokens


@pytest.fixture(scope="module")
def http(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("fields")
    prompts = folder / "prompts.toml"
    prompts.write_text('[[models]]\nmatch = ["tiny"]\nprompts = { query = "blue {text}", document = "green {text}" }\n')
    flags = ("--model-path", tiny_path, "--model-name", "tiny", "--workers", "1", "--prompts-file", str(prompts))
    with (
        running_server(folder / "server.log", *flags) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


def told(answer: httpx.Response) -> tuple[str, str | None, int | None]:
    """Return what an error says, the field it names and the item: where its dialect tells no field, None."""
    body = answer.json()
    error = body.get("error", body.get("message"))
    if isinstance(error, dict):
        return error["message"], error["param"], error.get("index")
    return error, None, None


EMBED = {"model": "tiny", "input": ["red", "blue"]}
RERANK = {"model": "tiny", "query": "red", "documents": ["red", "blue"]}


@pytest.mark.parametrize(
    ("path", "body", "param", "index"),
    [
        ("/v1/rerank", {**RERANK, "documents": ["red", ""]}, "documents", 1),
        ("/v1/rerank", {**RERANK, "documents": ["red", {"text": ""}]}, "documents", 1),
        ("/v1/rerank", {**RERANK, "documents": ["red", LONG]}, "documents", 1),
        ("/v1/rerank", {**RERANK, "documents": ["red", POISON]}, "documents", 1),
        ("/v1/rerank", {**RERANK, "query": ""}, "query", None),
        ("/v1/rerank", {**RERANK, "query": LONG}, "query", None),
        ("/v1/rerank", {**RERANK, "top_k": 0}, "top_k", None),
        ("/v1/rerank", {**RERANK, "top_n": 0}, "top_n", None),
        ("/v1/rerank", {**RERANK, "truncate": 1}, "truncate", None),
        ("/v1/embeddings", {**EMBED, "input": ["red", ""]}, "input", 1),
        ("/v1/embeddings", {**EMBED, "input": ["red", POISON]}, "input", 1),
        ("/v1/embeddings", {**EMBED, "output_dimension": 0}, "output_dimension", None),
        ("/v1/embeddings", {**EMBED, "dimensions": 0}, "dimensions", None),
        ("/v1/embeddings", {**EMBED, "input_type": "no such"}, "input_type", None),
        ("/v1/embeddings", {**EMBED, "task": "no such"}, "task", None),
        ("/v1/embeddings", {**EMBED, "prompt_name": "no such"}, "prompt_name", None),
        ("/v1/embeddings", {**EMBED, "output_dtype": "no such"}, "output_dtype", None),
        ("/v1/embeddings", {**EMBED, "embedding_type": "no such"}, "embedding_type", None),
        ("/v1/embeddings", {**EMBED, "truncate": "no such"}, "truncate", None),
        ("/v1/embeddings", {**EMBED, "input": [[5]], "truncation": True}, "truncation", None),
        ("/v1/embeddings", {**EMBED, "input": [[5]], "task": "retrieval.query"}, "task", None),
    ],
)
def test_an_error_names_the_field_and_the_item_that_were_sent(
    http: httpx.Client, path: str, body: dict[str, Any], param: str, index: int | None
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == (500 if POISON in str(body) else 400)
    message, *named = told(answer)
    assert named == [param, index]
    assert not message.startswith(("dimensions", "prompt_name", "top_n")) or message.startswith(param)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v2/embed", {"model": "tiny", "texts": ["red"], "output_dimension": 0}, "output_dimension is 0"),
        ("/v2/embed", {"model": "tiny", "texts": ["red"], "max_tokens": 1}, "max_tokens is 1"),
        ("/embed", {"inputs": [[5, 6]], "prompt_name": "query"}, "prompt_name does not go with token ids"),
        ("/embed", {"inputs": [[5, 6]], "truncate": True}, "truncate does not go with token ids"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "red", "sentences": ["red"]}, "parameters": {"prompt_name": "no such"}},
            "no such",
        ),
        (
            "/similarity",
            {"inputs": {"source_sentence": "red", "sentences": ["red"]}, "parameters": {"no_such": True}},
            "no_such",
        ),
        ("/similarity", {"inputs": {"source_sentence": LONG, "sentences": ["red"]}, "parameters": {}}, "64"),
        ("/rerank", {"query": "red"}, "texts"),
        ("/rerank", {"query": "red", "texts": ["red"], "truncate": "end"}, "truncate"),
    ],
)
def test_what_is_wrong_is_refused_in_every_dialect(
    http: httpx.Client, path: str, body: dict[str, Any], says: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert says in told(answer)[0]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/octet-stream"])
def test_what_an_answer_has_no_place_for_is_refused(http: httpx.Client, accept: str) -> None:
    body = {**EMBED, "return_truncated": True}
    answer = http.post("/v1/embeddings", json=body, headers={"accept": accept})
    assert (answer.status_code, told(answer)[1]) == (400, "return_truncated")
    late = http.post("/v1/embeddings", json={**body, "late_chunking": True})
    assert (late.status_code, told(late)[1]) == (400, "return_truncated")


COHERE = {"model": "tiny", "texts": ["red", "blue"]}
SENTENCES = {"source_sentence": "red", "sentences": ["red", "blue"]}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/embeddings", {**EMBED, "input": ["red", ""]}, "input[1] is empty"),
        ("/v1/embeddings", {**EMBED, "input": [[5], [999_999]]}, "input[1] has token id 999999"),
        ("/v1/embeddings", {**EMBED, "input": [999_999]}, "input has token id 999999"),
        ("/v1/embeddings", {**EMBED, "input": LONG}, "input has "),
        ("/v1/embeddings", {**EMBED, "input": ["red", "\n"], "late_chunking": True}, "input[1] is empty"),
        ("/v1/embeddings", {**EMBED, "input": ["red", LONG], "late_chunking": True}, "input has "),
        ("/v1/embeddings", {**EMBED, "task": "no such"}, "task 'no such' is not one"),
        ("/v1/embeddings", {**EMBED, "embedding_type": "int9"}, "embedding_type is 'int9'"),
        ("/v1/rerank", {**RERANK, "documents": ["red", ""]}, "documents[1] is empty"),
        ("/v1/rerank", {**RERANK, "query": LONG}, "query has "),
        ("/v2/embed", {**COHERE, "texts": ["red", LONG], "truncate": "NONE"}, "texts[1] has "),
        ("/v2/embed", {**COHERE, "texts": ["red", POISON]}, "texts[1]"),
        ("/v2/embed", {**COHERE, "input_type": "no such"}, "input_type 'no such' is not one"),
        ("/v2/embed", {**COHERE, "embedding_types": ["int9"]}, "embedding_types is 'int9'"),
        (
            "/v2/embed",
            {"model": "tiny", "inputs": [{"content": [{"type": "text", "text": t}]} for t in ("red", "")]},
            "inputs[1] is empty",
        ),
        ("/v2/rerank", {**RERANK, "documents": ["red", ""]}, "documents[1] is empty"),
        ("/v2/rerank", {**RERANK, "query": ""}, "query is empty"),
        ("/embed", {"inputs": ["red", LONG]}, "inputs[1] has "),
        ("/embed", {"inputs": LONG}, "inputs has "),
        ("/embed", {"inputs": "red", "prompt_name": "no such"}, "prompt_name 'no such' is not one"),
        ("/embed_all", {"inputs": ["red", ""]}, "inputs[1] is empty"),
        ("/rerank", {"query": "red", "texts": ["red", ""]}, "texts[1] is empty"),
        ("/rerank", {"query": "", "texts": ["red"]}, "query is empty"),
        ("/similarity", {"inputs": {**SENTENCES, "sentences": ["red", LONG]}}, "inputs.sentences[1] has "),
        ("/similarity", {"inputs": {**SENTENCES, "source_sentence": LONG}}, "inputs.source_sentence has "),
        ("/similarity", {"inputs": {**SENTENCES, "source_sentence": POISON}}, "inputs.source_sentence"),
        (
            "/similarity",
            {"inputs": SENTENCES, "parameters": {"prompt_name": "no such"}},
            "parameters.prompt_name 'no such' is not one",
        ),
        (
            "/similarity",
            {"inputs": SENTENCES, "parameters": {"truncation_direction": "up"}},
            "parameters.truncation_direction: Invalid enum value 'up'; it must be left or right",
        ),
        ("/decode", {"ids": [[5], [999_999]]}, "ids[1] has token id 999999"),
        ("/api/embed", {"model": "tiny", "input": ["red", LONG], "truncate": False}, "input[1] has "),
        ("/api/embed", {"model": "tiny", "input": LONG, "truncate": False}, "input has "),
        ("/api/embeddings", {"model": "tiny", "prompt": POISON}, "the model failed on prompt: "),
    ],
)
def test_a_message_names_the_place_in_the_body(http: httpx.Client, path: str, body: dict[str, Any], says: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == (500 if POISON in str(body) else 400)
    assert says in told(answer)[0]
    assert "text 0" not in told(answer)[0]


@pytest.mark.parametrize(
    ("path", "body", "field", "other"),
    [
        ("/v1/embeddings", {**EMBED, "truncate": "none", "truncation": True}, "truncation", "truncate"),
        ("/v1/embeddings", {**EMBED, "prompt_name": "query", "input_type": "document"}, "input_type", "prompt_name"),
        ("/v1/embeddings", {**EMBED, "input_type": "query", "task": "clustering"}, "task", "input_type"),
        ("/v1/embeddings", {**EMBED, "output_dtype": "int8", "embedding_type": "float"}, "embedding_type", "output_d"),
        ("/v1/embeddings", {**EMBED, "dimensions": 8, "output_dimension": 16}, "output_dimension", "dimensions"),
        ("/v1/embeddings", {**EMBED, "normalized": True, "normalize": False}, "normalize", "normalized"),
        (
            "/v1/embeddings",
            {**EMBED, "encoding_format": "float", "embedding_type": "base64"},
            "embedding_type",
            "encoding_format",
        ),
        ("/v1/rerank", {**RERANK, "top_n": 1, "top_k": 2}, "top_k", "top_n"),
        ("/v1/rerank", {**RERANK, "truncate": "start", "truncation": False}, "truncation", "truncate"),
        ("/rerank", {**RERANK, "texts": ["red"]}, "documents", "texts"),
        *(
            ("/rerank", {**RERANK, field: value}, field, "documents")
            for field, value in {"return_text": True, "raw_scores": False, "truncation_direction": "left"}.items()
        ),
        *(
            ("/rerank", {"query": "red", "texts": ["red"], field: value}, field, "texts")
            for field, value in {"return_documents": True, "top_k": 1, "truncation": True}.items()
        ),
        ("/v2/embed", {**COHERE, "max_tokens": 5, "truncate": "NONE"}, "max_tokens", "truncate"),
        ("/v2/embed", {**COHERE, "max_tokens": 5, "truncate": "START"}, "max_tokens", "truncate"),
        ("/v2/embed", {**COHERE, "inputs": [{"content": [{"type": "text", "text": "red"}]}]}, "inputs", "texts"),
        ("/v2/rerank", {**RERANK, "max_tokens_per_doc": 5}, "max_tokens_per_doc", "64"),
        ("/v2/rerank", {**RERANK, "max_tokens_per_doc": 0}, "max_tokens_per_doc", "64"),
        ("/api/show", {"model": "tiny", "name": "x"}, "name", "model"),
    ],
)
def test_what_contradicts_another_field_or_could_not_be_done_is_refused(
    http: httpx.Client, path: str, body: dict[str, Any], field: str, other: str
) -> None:
    answer = http.post(path, json=body)
    message, param, _ = told(answer)
    assert (answer.status_code, message.startswith(f"{field} "), other in message) == (400, True, True), message
    assert param in (None, field)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {**EMBED, "truncate": "end", "truncation": True}),
        ("/v1/embeddings", {**EMBED, "dimensions": 8, "output_dimension": 8}),
        ("/v1/embeddings", {**EMBED, "encoding_format": "base64", "embedding_type": "base64"}),
        ("/v1/embeddings", {**EMBED, "encoding_format": "float", "output_dtype": "int8"}),
        ("/v1/rerank", {**RERANK, "top_n": 1, "top_k": 1}),
        ("/v2/rerank", {**RERANK, "max_tokens_per_doc": 4096}),
        ("/v2/embed", {**COHERE, "max_tokens": 5, "truncate": "END"}),
        ("/api/show", {"model": "tiny", "name": "tiny"}),
    ],
)
def test_what_is_said_twice_and_agrees_is_taken(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    assert http.post(path, json=body).status_code == 200


def test_rerank_obeys_top_n_and_model_in_both_bodies(http: httpx.Client) -> None:
    body = {"query": "red", "texts": ["red", "blue"], "top_n": 1, "model": "tiny"}
    assert len(http.post("/rerank", json=body).json()) == 1
    assert http.post("/rerank", json={**body, "top_n": 0}).status_code == 400
    assert http.post("/rerank", json={**body, "model": "no such"}).status_code == 404


def test_a_null_model_is_no_model_to_openais_dialect(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={**EMBED, "model": None})
    assert (answer.status_code, told(answer)[1]) == (400, "model")


def test_an_answer_in_bytes_has_one_dtype(http: httpx.Client) -> None:
    body = {**EMBED, "embedding_type": ["int8", "float"]}
    answer = http.post("/v1/embeddings", json=body, headers={"accept": "application/octet-stream"})
    assert (answer.status_code, told(answer)[1]) == (400, "embedding_type")


def test_the_model_is_said_to_fail_once(http: httpx.Client) -> None:
    message, _, _ = told(http.post("/v1/embeddings", json={**EMBED, "input": ["red", POISON]}))
    assert message.count("the model failed") == 1


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        *(
            (f"/{path}", field, {"inputs": "red"})
            for path, fields in {
                "embed": ("normalize", "truncate", "truncation_direction", "prompt_name", "dimensions"),
                "embed_all": ("model", "truncate", "truncation_direction", "prompt_name"),
                "tokenize": ("add_special_tokens", "prompt_name", "model"),
            }.items()
            for field in fields
        ),
        *(
            ("/rerank", field, {"query": "red", "texts": ["red"]})
            for field in ("raw_scores", "return_text", "truncate", "truncation_direction", "documents")
        ),
        ("/similarity", "parameters", {"inputs": {"source_sentence": "red", "sentences": ["red"]}}),
        *(("/decode", field, {"ids": [5]}) for field in ("skip_special_tokens", "model")),
        *(
            ("/v1/embeddings", field, EMBED)
            for field in (
                "encoding_format",
                "dimensions",
                "user",
                "truncate",
                "truncation",
                "prompt_name",
                "input_type",
                "task",
                "late_chunking",
                "output_dtype",
                "embedding_type",
                "output_dimension",
                "normalized",
                "normalize",
                "return_truncated",
            )
        ),
        *(
            ("/v1/rerank", field, RERANK)
            for field in ("model", "top_n", "top_k", "return_documents", "truncate", "truncation")
        ),
        *(
            ("/v2/embed", field, {"model": "tiny", "texts": ["red"]})
            for field in ("input_type", "embedding_types", "truncate", "max_tokens", "output_dimension", "inputs")
        ),
        *(("/v2/rerank", field, RERANK) for field in ("top_n", "return_documents")),
        *(("/api/embed", field, {"model": "tiny", "input": "red"}) for field in ("truncate", "dimensions")),
    ],
)
def test_null_is_the_default(http: httpx.Client, path: str, field: str, body: dict[str, Any]) -> None:
    without, with_null = http.post(path, json=body), http.post(path, json={**body, field: None})
    assert (without.status_code, with_null.status_code) == (200, 200)
    if "v2" not in path and "api" not in path:  # theirs have an id, or times
        assert without.content == with_null.content


@pytest.mark.parametrize(
    ("path", "body", "param", "index"),
    [
        ("/v1/embeddings", b'{"model": "tiny", "input": ["red", "\\ud800"]}', "input", 1),
        ("/v1/embeddings", b'{"model": "tiny", "input": "\\ud800"}', "input", None),
        ("/v1/embeddings", b'{"model": "tiny", "input": ["red", {"text": "\\udc00"}]}', "input", 1),
        ("/v1/embeddings", b'{"model": "\\ud800", "input": "red"}', "model", None),
        ("/v1/rerank", b'{"query": "red", "documents": ["red", "blue", "a\\ud800"]}', "documents", 2),
        ("/v1/rerank", b'{"query": "\\ud800", "documents": ["red"]}', "query", None),
    ],
)
def test_half_of_a_surrogate_pair_is_found(
    http: httpx.Client, path: str, body: bytes, param: str, index: int | None
) -> None:
    answer = http.post(path, content=body)
    message, *named = told(answer)
    assert (answer.status_code, named) == (400, [param, index])
    assert "surrogate" in message


@pytest.mark.parametrize("path", ["/v2/embed", "/embed", "/api/embed", "/tokenize"])
def test_half_of_a_surrogate_pair_is_named_in_every_dialect(http: httpx.Client, path: str) -> None:
    field = {"/v2/embed": "texts", "/api/embed": "input"}.get(path, "inputs")
    answer = http.post(path, content=b'{"model": "tiny", "%s": ["red", "\\ud800"]}' % field.encode())
    assert (answer.status_code, f"{field}[1]" in told(answer)[0]) == (400, True)


def test_similarity_reads_its_texts_as_it_is_told(http: httpx.Client) -> None:
    def asked(source: str, sentence: str, **parameters: object) -> float:
        body = {"inputs": {"source_sentence": source, "sentences": [sentence]}, "parameters": parameters}
        return float(http.post("/similarity", json=body).json()[0])

    assert asked("red", "blue", prompt_name="query") == pytest.approx(asked("blue red", "blue blue"))
    cut = asked(LONG + "blue", "blue", truncate=True, truncation_direction="left")
    assert cut != pytest.approx(asked(LONG + "blue", "blue", truncate=True))


@pytest.mark.parametrize("task", ["text-matching", "classification", "separation", "clustering"])
@pytest.mark.parametrize("late_chunking", [False, True])
def test_a_task_that_means_nothing_to_the_model_is_left_out(http: httpx.Client, task: str, late_chunking: bool) -> None:
    body = {**EMBED, "late_chunking": late_chunking}
    assert (
        http.post("/v1/embeddings", json={**body, "task": task}).content
        == http.post("/v1/embeddings", json=body).content
    )


def test_late_chunks_are_read_with_the_prompt_of_their_task(http: httpx.Client) -> None:
    body = {"model": "tiny", "input": ["red", "blue"], "late_chunking": True, "task": "retrieval.passage"}
    rows = [item["embedding"] for item in http.post("/v1/embeddings", json=body).json()["data"]]
    plain = {"model": "tiny", "input": ["green", "red", "blue"], "late_chunking": True}
    expected = [item["embedding"] for item in http.post("/v1/embeddings", json=plain).json()["data"]][1:]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_rerank_takes_jinas_body_and_gives_jinas_answer(http: httpx.Client) -> None:
    body = {**RERANK, "return_documents": True, "top_n": 1, "truncate": "end"}
    assert http.post("/rerank", json=body).json() == http.post("/v1/rerank", json=body).json()
    teis = http.post("/rerank", json={"query": "red", "texts": ["red", "blue"]}).json()
    assert [sorted(item) for item in teis] == [["index", "score"]] * 2
