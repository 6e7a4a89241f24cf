"""Token ids are those of the model's own tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama import EmptyInput, EngineConfig, InvalidToken, TextTooLong
from embellama.gguf.weights import Weights
from embellama.text.tokenizer import Tokenizer
from tests.conftest import Reference


@pytest.fixture(scope="module")
def minilm(model_path: str) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=model_path), vocab_only=True))


@pytest.fixture(scope="module")
def tiny(tiny_path: str) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=tiny_path), vocab_only=True))


@pytest.mark.model
def test_ids_are_those_of_hugging_face(minilm: Tokenizer, reference: Reference) -> None:
    assert [row.tolist() for row in minilm.encode(reference.texts).tokens] == reference.ids


@pytest.mark.model
def test_a_vocab_only_load_knows_the_limit(minilm: Tokenizer) -> None:
    assert (minilm.limit, minilm.n_vocab) == (512, 30522)


@given(text=st.text(min_size=1, max_size=40))
def test_any_unicode_has_ids_between_the_special_tokens(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode([text]).tokens[0]
    assert (ids[0], ids[-1]) == (2, 3)
    assert ids.min() >= 0
    assert ids.max() < tiny.n_vocab


def test_special_tokens_written_out_count_as_such(tiny: Tokenizer) -> None:
    assert tiny.encode(["red [SEP] blue"]).tokens[0].tolist() == [2, 5, 3, 7, 3]


def test_ids_are_used_as_they_are(tiny: Tokenizer) -> None:
    assert [row.tolist() for row in tiny.check([[5, 6], [7]])] == [[5, 6], [7]]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[5], [5, 38]], InvalidToken, "text 1 has token id 38, which is not in this model's vocabulary (0 to 37)"),
        ([[-1]], InvalidToken, "text 0 has token id -1"),
        ([[10**30]], InvalidToken, "text 0 has token id 1000"),
        ([[5], []], EmptyInput, "text 1 is empty"),
        ([[5] * 65], TextTooLong, "text 0 has 65 tokens; the limit is 64"),
    ],
)
def test_wrong_ids_are_named(tiny: Tokenizer, ids: list[list[int]], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        tiny.check(ids)
    assert str(caught.value).startswith(message)
