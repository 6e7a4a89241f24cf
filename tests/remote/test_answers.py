"""What is read of an answer, and what is none."""

import base64
import time
from email.utils import formatdate
from typing import Any

import msgspec
import numpy as np
import pytest

from embellama.errors import ConfigError
from embellama.remote.answers import vectors_of
from embellama.remote.config import RemoteConfig
from embellama.remote.faults import Refused, Transient, Unusable, fault_of, retry_after_of


def body(*embeddings: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"data": [{"embedding": each} for each in embeddings], **more})


def test_vectors_come_as_numbers_or_base64_in_the_order_of_their_indexes() -> None:
    second = base64.b64encode(np.array([3, 4], "<f4").tobytes()).decode()
    data = [{"index": 1, "embedding": second}, {"index": 0, "embedding": [1, 2.5]}]
    answer = vectors_of(msgspec.json.encode({"data": data, "usage": {"prompt_tokens": 7}}), 2, None)
    np.testing.assert_array_equal(answer.rows, np.array([[1, 2.5], [3, 4]], np.float32))
    assert (answer.n_tokens, answer.n_cut, answer.total_tokens) == (None, None, 7)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>", "the answer is none: JSON is malformed"),
        (b"{}", "missing required field `data`"),
        (body([1.0, 2.0]), "1 vectors for 2 texts"),
        (body([1.0, 2.0], [1.0]), "vectors of 1, 2 numbers, not of 2"),
        (body([], []), "vectors of 0 numbers, not of 2"),
        (body([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), "vectors of 3 numbers, not of 2"),
        (body([1.0, None], [1.0, 2.0]), "Expected `float`, got `null`"),
        (body("AAAA", "AAAA"), "no base64 of float32"),
        (body("?", "?"), "no base64 of float32"),
        (body([1.0, 2.0], [1.0, 2.0], truncated=[0]), "counts the tokens of 1 texts, not of 2"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again(content: bytes, says: str) -> None:
    with pytest.raises(Transient) as caught:
        vectors_of(content, 2, 2)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Refused) for status in (400, 413, 422)),
        *((status, Unusable) for status in (301, 401, 403, 404, 405)),
        *((status, Transient) for status in (408, 409, 429, 500, 502, 503, 504, 529)),
    ],
)
def test_each_status_is_fatal_or_not(status: int, kind: type[Exception]) -> None:
    assert type(fault_of("http://a", status, {}, b"no")) is kind


def test_a_limit_that_no_time_lifts_ends_it() -> None:
    assert isinstance(fault_of("http://a", 429, {"x-should-retry": "false"}, b""), Unusable)


@pytest.mark.parametrize(
    "error", [{"index": 3, "message": "input[3] is empty"}, {"param": "input[3]"}, {"message": "'$.input[3]' is bad"}]
)
def test_the_text_that_an_error_names_is_found(error: dict[str, Any]) -> None:
    fault = fault_of("http://a", 400, {}, msgspec.json.encode({"error": error}))
    assert isinstance(fault, Refused)
    assert fault.index == 3
    assert "input[3]" not in str(fault)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_when_to_come_again_is_read_in_each_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_of(headers) == seconds


def test_when_to_come_again_may_be_a_date() -> None:
    date = formatdate(time.time() + 100, usegmt=True)
    assert retry_after_of({"retry-after": date}) == pytest.approx(100, abs=20)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a/", "http://a/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("https://a/v1/embeddings", "https://a/v1"),
        ("http://a/embeddings", "http://a"),
    ],
)
def test_a_url_is_what_openais_clients_take(url: str, base: str) -> None:
    assert RemoteConfig(url=(url, url)).checked().url == (base,)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": ()}, "url is (): expected `array` of length >= 1"),
        ({"url": ("a:1",)}, "url is 'a:1'; it must be as http://host:8000/v1"),
        ({"url": ("http://me:secret@a",)}, "url is '…@a'; it must be"),
        ({"url": ("http://a:port",)}, "url is 'http://a:port'"),
        ({"url": ("http://a?b",)}, "url is 'http://a?b'"),
        ({"url": ("http://a",), "api_key": "a secret"}, "api_key has a character that no header may have"),
        ({"url": ("http://a",), "concurrency": 0}, "concurrency is 0: expected `int` >= 1"),
    ],
)
def test_a_wrong_setting_is_named_but_for_secrets(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteConfig(**settings).checked()
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
