"""Chunks hold all of a text, have no more tokens than asked for, and end between words, or else characters."""

import itertools
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embellama import EngineConfig
from embellama.bulk.documents.chunks import Chunker
from embellama.gguf.weights import Weights
from embellama.text.tokenizer import Tokenizer
from tests.conftest import TinyModel

VOCABULARIES = ["bert-mean", "xlm-roberta", "roberta", "gemma-embedding", "qwen3"]
LONG = ["e\u0301" * 50, "猫は敷物の上に座っている" * 10, "👩🏽\u200d🚀" * 20, "abcdefgh" * 30]


@pytest.fixture(scope="module", params=VOCABULARIES)
def tokenizer(request: pytest.FixtureRequest, tiny: TinyModel) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=str(tiny(request.param))), vocab_only=True))


words = st.lists(st.sampled_from(["red", "green", "blue.", "zebra", "one,two", *LONG]), max_size=40)
spaces = st.sampled_from([" ", "\n", "  ", "\u3000"])


@settings(deadline=None, max_examples=40)
@given(words=words, space=spaces, n_tokens=st.integers(8, 40), overlap=st.integers(0, 7))
@example(words=[LONG[0]] * 2, space=" ", n_tokens=34, overlap=2)
def test_chunks_hold_all_words_in_so_many_tokens(
    tokenizer: Tokenizer, words: list[str], space: str, n_tokens: int, overlap: int
) -> None:
    text = space.join(words)
    spans = [*Chunker(tokenizer, n_tokens, overlap, late=False).spans(text)]
    covered = {place for start, stop in spans for place in range(start, stop)}
    assert all(place in covered or character.isspace() for place, character in enumerate(text))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(spans))
    for start, stop in spans:
        part = text[start:stop]
        character = stop == start + 1 or part in "👩🏽\u200d🚀"  # one that has more tokens than a chunk
        assert len(tokenizer.bare([part])[0]) <= n_tokens or character
        assert part == part.strip()
        assert unicodedata.category(part[0]) != "Mn"


@settings(deadline=None, max_examples=40)
@given(words=words, overlap=st.integers(1, 7))
def test_what_chunks_share_has_no_more_tokens_than_asked_for(
    tokenizer: Tokenizer, words: list[str], overlap: int
) -> None:
    text = " ".join(words)
    spans = [*Chunker(tokenizer, 8, overlap, late=False).spans(text)]
    for (_, stop), (start, _) in itertools.pairwise(spans):
        shared = text[start:stop].split()
        assert sum(len(ids) for ids in tokenizer.bare(shared)) <= overlap + 2 * len(shared)


@settings(deadline=None, max_examples=40)  # a process may be made to tokenize a hazardous text
@given(words=words)
def test_late_chunks_lie_in_windows_that_the_model_reads(tokenizer: Tokenizer, words: list[str]) -> None:
    text = " ".join(words)
    chunker = Chunker(tokenizer, 10, 2, late=True)
    spans = [*chunker.spans(text)]
    reads = list(chunker.reads([({"id": "a", "page": None, "text": text}, 1)], 0, 0)) if spans else []
    for read, (start, stop) in zip(reads, spans, strict=True):
        late = read.late
        assert late
        assert late.window[late.start : late.stop] == text[start:stop]
        assert len(tokenizer.encode([late.window]).tokens[0]) <= tokenizer.limit
