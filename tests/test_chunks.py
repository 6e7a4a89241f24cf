"""Vectors of parts of a text that is read as a whole, through the engine."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama import EmptyInput, EngineConfig, InputError, InvalidText, TextTooLong
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.options import ChunkOptions
from tests.conftest import Reference, TinyModel
from tests.forward import forward
from tests.forward.model import Model
from tests.known import NAMES, PIECES, TEXT, assert_alike, engine_of, first_of, token_vectors, unit


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_means_of_the_whole_texts_token_vectors(name: str, tiny: TinyModel) -> None:
    rows, first = token_vectors(tiny(name), PIECES[name]), first_of(name)
    with engine_of(tiny(name)) as engine:
        sized = engine.embed_chunks("tiny", TEXT, chunk_size=3)
        spans = engine.embed_chunks("tiny", TEXT, token_spans=[(1, 3), (0, 1), (0, 4), (2, 4)])
        characters = engine.embed_chunks("tiny", TEXT, character_spans=[(0, 9), (4, 14), (15, 18), (10, 12)])
    # The special tokens belong to the first and the last chunk; "red three blue" and "one".
    assert sized.spans.tolist() == [[0, 3], [3, 4]]
    assert_alike(sized.vectors, unit(np.array([rows[: first + 3].mean(0), rows[first + 3 :].mean(0)])))
    inner = rows[first:]
    assert spans.spans.tolist() == [[1, 3], [0, 1], [0, 4], [2, 4]]
    assert_alike(spans.vectors, unit(np.array([inner[a:b].mean(0) for a, b in ((1, 3), (0, 1), (0, 4), (2, 4))])))
    assert characters.spans.tolist() == [[0, 9], [4, 14], [15, 18], [10, 12]]
    assert_alike(characters.vectors, unit(np.array([inner[a:b].mean(0) for a, b in ((0, 2), (1, 3), (3, 4), (2, 3))])))


@pytest.mark.parametrize("pooling", ["cls", "last", "max"])
def test_chunks_are_means_whatever_the_models_pooling(pooling: str, tiny: TinyModel) -> None:
    rows = token_vectors(tiny("bert-mean"), PIECES["bert-mean"])
    with engine_of(tiny("bert-mean"), pooling=pooling, normalization="none") as engine:
        got = engine.embed_chunks("tiny", TEXT, token_spans=[(0, 2)])
        whole = engine.embed("tiny", TEXT)
    assert_alike(got.vectors, rows[1:3].mean(0, keepdims=True))
    assert_alike(whole, {"cls": rows[0], "last": rows[-1], "max": rows.max(0)}[pooling])


def test_one_chunk_is_the_whole_text(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        for text in (TEXT, "red", " "):
            chunks = engine.embed_chunks("tiny", text, chunk_size=100)
            assert_alike(chunks.vectors[0], engine.embed("tiny", text))
        assert chunks.spans.tolist() == [[0, 0]]  # of a text that is nothing but space


@given(n_words=st.integers(1, 62), size=st.integers(1, 70))
def test_chunks_of_a_size_part_the_text(n_words: int, size: int, tiny_path: str) -> None:
    config = EngineConfig(model_path=tiny_path).checked()
    job = Jobs(config, Weights(config, vocab_only=True)).chunks("red " * n_words, ChunkOptions(chunk_size=size))
    n_tokens = len(job.tokens[0])
    rows = np.eye(n_tokens, 64, dtype=np.float32)  # so that a chunk's vector shows its tokens
    chunks = job.finish(rows)
    assert chunks.spans[0, 0] == 0
    assert chunks.spans[-1, 1] == n_words
    assert (chunks.spans[1:, 0] == chunks.spans[:-1, 1]).all()
    lengths = np.diff(chunks.spans, axis=1)[:, 0]
    assert (lengths[:-1] == size).all()
    assert 1 <= lengths[-1] <= size
    assert ((chunks.vectors > 0).sum(axis=0) == 1)[:n_tokens].all()
    np.testing.assert_allclose(np.linalg.norm(chunks.vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["t5encoder", "xlm-roberta"])
def test_a_part_of_unknown_characters_has_their_one_token(name: str, tiny: TinyModel) -> None:
    # "語語語" is one unknown token, after one for the space.
    first = first_of(name)
    with engine_of(tiny(name)) as engine:
        ids = engine.tokenize("tiny", ["red 語語語 blue"]).tokens[0].tolist()
        vocabulary = Model(tiny(name)).get("tokenizer.ggml.tokens")
        assert [vocabulary[i] for i in ids[first : len(ids) - 1]] == ["▁red", "▁", "<unk>", "▁blue"]
        got = engine.embed_chunks("tiny", "red 語語語 blue", character_spans=[(5, 6), (4, 7), (6, 12)]).vectors
    rows = forward(tiny(name), ids)[first:]
    assert_alike(got, unit(np.array([rows[2], rows[1:3].mean(0), rows[2:4].mean(0)])))


@pytest.mark.parametrize("kind", ["token_spans", "character_spans"])
def test_spans_may_be_an_array_or_an_iterator(kind: str, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        for spans in (np.array([[0, 3], [1, 4]]), iter([(0, 3), (1, 4)]), ([0, 3], [1, 4])):
            options: dict[str, Any] = {kind: spans}
            assert engine.embed_chunks("tiny", TEXT, **options).spans.tolist() == [[0, 3], [1, 4]]


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (TEXT, {}, InputError, "give exactly one of chunk_size, token_spans and character_spans"),
        (TEXT, {"chunk_size": 1, "token_spans": [(0, 1)]}, InputError, "give exactly one of chunk_size, token_spans"),
        (TEXT, {"chunk_size": 0}, InputError, "chunk_size is 0; it must be at least 1"),
        (TEXT, {"token_spans": []}, InputError, "there are no token spans"),
        (TEXT, {"character_spans": []}, InputError, "there are no character spans"),
        (TEXT, {"token_spans": [(0, 5)]}, InputError, "token span 0 to 5 is not within the text's 4 tokens"),
        (
            TEXT,
            {"token_spans": [(2, 2)]},
            InputError,
            "token span 2 to 2 is not within the text's 4 tokens, or is empty",
        ),
        (TEXT, {"token_spans": [(-1, 2)]}, InputError, "token span -1 to 2 is not within"),
        (TEXT, {"token_spans": [(0.5, 2)]}, InputError, "token_spans must be pairs: the first token and the one after"),
        (TEXT, {"token_spans": [(0, 1, 2)]}, InputError, "token_spans must be pairs"),
        (TEXT, {"character_spans": [3]}, InputError, "character_spans must be pairs: the first character and the one"),
        (TEXT, {"character_spans": [(0, 19)]}, InputError, "character span 0 to 19 is not within the text's 18"),
        ("red  one", {"character_spans": [(3, 5)]}, InputError, "character span 3 to 5 has no token"),
        ("", {"chunk_size": 1}, EmptyInput, "text 0 is empty"),
        (None, {"chunk_size": 1}, InvalidText, "text 0 is NoneType, not str"),
        ("red " * 63, {"chunk_size": 1}, TextTooLong, "text 0 has 65 tokens; the limit is 64"),
    ],
)
def test_chunks_that_cannot_be_are_named(
    text: Any, options: Any, error: type[Exception], message: str, tiny: TinyModel
) -> None:
    with engine_of(tiny("bert-mean")) as engine, pytest.raises(error) as caught:
        engine.embed_chunks("tiny", text, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.model
def test_chunks_of_a_long_text_have_the_whole_as_their_mean(reference: Reference, model_path: str) -> None:
    index = max(range(len(reference.texts)), key=lambda i: len(reference.ids[i]) * (len(reference.ids[i]) < 500))
    text, n_tokens = reference.texts[index], len(reference.ids[index])
    with engine_of(model_path, normalization="none") as engine:
        chunks = engine.embed_chunks("tiny", text, chunk_size=64)
        sentences = [(start, start + text[start:].index(".") + 1) for start in (0, text.index(". ") + 2)]
        first, second = engine.embed_chunks("tiny", text, character_spans=sentences).vectors
    lengths = np.diff(chunks.spans, axis=1)[:, 0]
    lengths[[0, -1]] += 1
    assert (n_tokens, lengths.sum(), len(chunks.vectors)) == (470, 470, 8)
    mean = (chunks.vectors * lengths[:, None]).sum(0) / n_tokens
    assert unit(mean) @ reference.vectors[index] > 0.9999
    assert unit(first) @ unit(second) < 0.95
