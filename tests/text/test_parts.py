"""The tokens of parts of a text, for every kind of vocabulary."""

import itertools
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama import EngineConfig
from embellama.gguf.weights import Weights
from embellama.text.tokenizer import Tokenizer
from tests.conftest import TinyModel
from tests.known import NAMES


@cache
def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=str(path)), vocab_only=True))


@pytest.mark.parametrize("name", NAMES)
@given(words=st.lists(st.sampled_from(["red", "green", "blue", "a"]), max_size=20), data=st.data())
def test_characters_have_the_tokens_of_their_words(
    name: str, words: list[str], data: st.DataObject, tiny: TinyModel
) -> None:
    words = ["red", *words]
    text = " ".join(words)
    starts = [len(" ".join(words[:i])) + (i > 0) for i in range(len(words))]
    first, last = sorted(data.draw(st.lists(st.integers(0, len(words) - 1), min_size=2, max_size=2)))
    start = starts[first] + data.draw(st.integers(0, len(words[first]) - 1))
    end = starts[last] + data.draw(st.integers(start - starts[last] + 1 if first == last else 1, len(words[last])))
    tokenizer = tokenizer_of(tiny(name))
    assert len(tokenizer.bare([text])[0]) == len(words)
    assert tokenizer.within(text, [(start, end)]).tolist() == [[first, last + 1]]


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(st.sampled_from("red 語🙂é\u0301<s>/\n"), min_size=1, max_size=30), data=st.data())
def test_every_token_belongs_to_a_part_of_a_text_in_parts(
    name: str, text: str, data: st.DataObject, tiny: TinyModel
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=4))
    places = sorted({0, *cuts, len(text)})
    tokenizer = tokenizer_of(tiny(name))
    found = tokenizer.within(text, itertools.pairwise(places)).tolist()
    n_tokens = len(tokenizer.bare([text])[0])
    covered = {i for first, end in found for i in range(first, end)}
    assert covered == set(range(n_tokens))
    assert found == sorted(found)
