"""OpenAI's contract, without a server: what is parsed, what is refused, what is written."""

import base64
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from embellama_server.dialects import DIALECTS
from embellama_server.dialects.bodies import inputs_of
from embellama_server.dialects.openai import OpenAIEmbeddings
from embellama_server.problems import BadRequest
from embellama_server.reply import ReplyContext
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embellama import EngineConfig
from embellama.errors import InputError
from embellama.results import Embeddings

openai = OpenAIEmbeddings()


def test_unknown_fields_are_ignored() -> None:
    request = openai.parse(b'{"model":"m","input":"abc","user":"u","stream":false}', "")
    assert (request.model, request.n_characters, request.streams) == ("m", 3, False)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b'{"model":"m","input":"\\ud800"}', "input", "surrogate"),
        (b"[" * 100_000, None, ""),
        (b"[]", None, "Expected `object`"),
        (b'{"input":"a"}', "model", "missing required field `model`"),
        (b'{"model":"m"}', "input", "missing required field `input`"),
        (b'{"model":1,"input":"a"}', "model", "Expected `str`, got `int`"),
        (b'{"model":"m","input":null}', "input", "got `null`"),
        (b'{"model":"m","input":[1.5]}', "input", "got `float`"),
        (b'{"input":["a",null],"model":"m"}', "input", "input[1]: Expected"),
        (b'{"input":["a",[1],[2,"b"]]}', "input", "input[2]: Expected"),
        (b'{"input":["a",[1e400]]}', "input", "input: Number out of range"),
        (b'{"input":["a",null],"input":1}', "input", "input: Expected"),
        (b'{"model":"m","input":[["a"]]}', "input", "Expected `int`, got `str`"),
        (b'{"model":"m","input":""}', "input", "input is empty"),
        (b'{"model":"m","input":[]}', "input", "input is empty"),
        (b'{"model":"m","input":"a","dimensions":"4"}', "dimensions", "Expected `int | null`"),
        (b'{"model":"m","input":"a","encoding_format":"int8"}', "encoding_format", "it must be 'float' or 'base64'"),
    ],
)
def test_a_bad_body_names_the_field(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        openai.parse(body, "")
    assert caught.value.param == param
    assert message in str(caught.value)


@given(body=st.binary() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(orjson.dumps))
def test_any_body_is_a_request_or_a_bad_request(body: bytes) -> None:
    for dialect in DIALECTS:
        with suppress(InputError):
            dialect.parse(body, "")


@pytest.mark.parametrize(
    ("value", "items"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
def test_input_comes_in_four_shapes(value: str | list[object], items: list[object]) -> None:
    assert inputs_of(value) == items


def test_input_must_be_of_one_kind_and_within_the_limit() -> None:
    with pytest.raises(BadRequest, match="mixes texts and token ids"):
        inputs_of(["a", 1])
    with pytest.raises(BadRequest, match="input has 2049 items; the limit is 2048"):
        inputs_of(["a"] * 2049)
    assert inputs_of([7] * 2049) == [[7] * 2049]


CONFIG = EngineConfig(model_path="m.gguf")
MODEL: Any = None  # OpenAI's answers say nothing of it

rows = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 150), st.integers(1, 8)),
    elements=st.floats(-1, 1, width=32, allow_subnormal=False),
)


@given(rows=rows, encoding=st.sampled_from(["float", "base64"]), n_tokens=st.integers(1, 10**6))
def test_what_is_written_reads_back_to_the_bit(
    rows: "np.ndarray[tuple[int, int], np.dtype[np.float32]]", encoding: str, n_tokens: int
) -> None:
    assume(rows.any(axis=1).all())
    request = openai.parse(orjson.dumps({"model": 'mini"lm', "input": "a", "encoding_format": encoding}), "")
    counts = np.zeros(len(rows), np.int32)
    reply = openai.reply(request, Embeddings(rows, counts, counts), ReplyContext(MODEL, CONFIG, n_tokens, 0.1))
    answer = orjson.loads(b"".join(reply.pieces))
    assert answer["object"] == "list"
    assert answer["model"] == 'mini"lm'
    assert answer["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    for i, (item, row) in enumerate(zip(answer["data"], rows, strict=True)):
        assert (item["object"], item["index"]) == ("embedding", i)
        value = item["embedding"]
        read = np.frombuffer(base64.b64decode(value), "<f4") if encoding == "base64" else np.array(value, np.float32)
        np.testing.assert_array_equal(read, row)
