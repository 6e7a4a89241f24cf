"""Texts that are too long: refused, cut or read in windows, with every kind of vocabulary."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embellama import (
    ConfigError,
    EmbeddingEngine,
    EmbeddingFailed,
    EmptyInput,
    EngineConfig,
    InputError,
    InvalidText,
    TextTooLong,
)
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.options import EmbedOptions, Truncate
from embellama.text.tokenizer import Tokenizer
from tests.conftest import TinyModel
from tests.forward import pooled
from tests.forward.model import Model

Ids = NDArray[np.int32]

# Each kind of vocabulary: what goes before "red green blue one two", its pieces, and what goes after it.
PIECES = {
    "bert-mean": (["[CLS]"], ["▁red", "▁green", "▁blue", "▁one", "▁two"], ["[SEP]"]),
    "t5encoder": ([], ["▁red", "▁green", "▁blue", "▁one", "▁two"], ["</s>"]),
    "xlm-roberta": (["<s>"], ["▁red", "▁green", "▁blue", "▁one", "▁two"], ["</s>"]),
    "roberta": (["<s>"], ["red", "Ġgreen", "Ġblue", "Ġone", "Ġtwo"], ["</s>"]),
    "modern-bert": (["[CLS]"], ["red", "Ġgreen", "Ġblue", "Ġone", "Ġtwo"], ["[SEP]"]),
    "qwen3": ([], ["red", "Ġgreen", "Ġblue", "Ġone", "Ġtwo"], ["<|endoftext|>"]),
    "llama-embed": (["<|begin_of_text|>"], ["red", "Ġgreen", "Ġblue", "Ġone", "Ġtwo"], []),
    "gemma-embedding": (["<bos>"], ["red", "▁green", "▁blue", "▁one", "▁two"], ["<eos>"]),
    "mistral": (["<s>"], ["▁red", "▁green", "▁blue", "▁one", "▁two"], ["</s>"]),
}
TEXT = "red green blue one two"
NAMES = list(PIECES)


def engine_of(path: Path | str, **settings: Any) -> EmbeddingEngine:
    settings = {"num_workers": 1, "n_threads": 1, **settings}
    return EmbeddingEngine(EngineConfig(model_path=str(path), model_name="tiny", **settings))


@cache
def tokenizer_of(path: Path, limit: int = 0) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=str(path)), vocab_only=True), limit)


def ids_of(path: Path, pieces: list[str]) -> Ids:
    vocabulary = Model(path).get("tokenizer.ggml.tokens")
    return np.array([vocabulary.index(piece) for piece in pieces], np.int32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("truncate", "kept"),
    [("end", slice(0, 3)), ("start", slice(2, 5)), (2, slice(0, 2))],
)
def test_what_is_cut_is_the_texts_and_never_special(
    name: str, truncate: Truncate, kept: slice, tiny: TinyModel
) -> None:
    first, pieces, last = PIECES[name]
    n_special = len(first) + len(last)
    expected = [ids_of(tiny(name), [*first, *pieces[kept], *last]), ids_of(tiny(name), [*first, pieces[0], *last])]
    if isinstance(truncate, int):
        truncate += n_special
    with engine_of(tiny(name), n_ctx=n_special + 3) as engine:
        found = engine.tokenize("tiny", [TEXT, "red"], truncate)
        got = engine.encode("tiny", [TEXT, "red"], truncate=truncate)
        tokens = engine.embed_tokens("tiny", TEXT, truncate=truncate)
    for ids, row, theirs in zip(expected, got.vectors, found.tokens, strict=True):
        np.testing.assert_array_equal(theirs, ids)
        vector = pooled(tiny(name), ids)
        assert row @ vector / np.linalg.norm(vector) > 0.9999
    n_kept = len(pieces[kept])
    assert got.n_cut.tolist() == found.n_cut.tolist() == [5 - n_kept, 0]
    assert got.n_tokens.tolist() == [n_special + n_kept, n_special + 1]
    assert len(tokens) == n_special + n_kept


@pytest.mark.parametrize("name", NAMES)
def test_by_default_nothing_is_cut(name: str, tiny: TinyModel) -> None:
    first, pieces, last = PIECES[name]
    n = len(first) + len(last) + 5
    with engine_of(tiny(name), n_ctx=n) as engine:
        assert engine.tokenize("tiny", [TEXT]).tokens[0].tolist() == [*ids_of(tiny(name), [*first, *pieces, *last])]
        with pytest.raises(TextTooLong) as caught:
            engine.embed_batch("tiny", ["red", f"{TEXT} three"])
    assert str(caught.value) == f"text 1 has {n + 1} tokens; the limit is {n}"


words = st.sampled_from(["red", "green", "blue", "one", "two", "three", "zq", "語", "🙂", "é", "?"])


@pytest.mark.parametrize("name", NAMES)
@given(text=st.lists(words, min_size=1, max_size=30).map(" ".join), n=st.integers(1, 80), start=st.booleans())
def test_a_cut_text_is_the_start_or_the_end_of_the_whole(
    name: str, text: str, n: int, start: bool, tiny: TinyModel
) -> None:
    whole = tokenizer_of(tiny(name), 64)
    limit = min(whole.n_special + n, 64)
    cut = tokenizer_of(tiny(name), limit)
    [bare] = whole.bare([text])
    [ids], [n_cut] = cut.encode([text], "start" if start else "end")
    inner = ids[len(cut.first) : len(ids) - len(cut.last)]
    assert [*ids[: len(cut.first)], *ids[len(ids) - len(cut.last) :]] == [*cut.first, *cut.last]
    assert len(inner) + n_cut == len(bare)
    assert len(ids) == min(len(bare) + cut.n_special, limit)
    np.testing.assert_array_equal(inner, bare[n_cut:] if start else bare[: len(bare) - n_cut])
    if not start:
        assert whole.encode([text], limit).tokens[0].tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("truncate", "value"),
    [("middle", "'middle'"), (None, "None"), (True, "True"), (3.5, "3.5"), (2, "2"), (65, "65"), (-1, "-1")],
)
def test_a_wrong_truncation_is_named(truncate: Any, value: str, tiny: TinyModel) -> None:
    message = (
        f"truncate is {value}; it must be none, end, start or a number of tokens from 3 to 64, of which 2 are special"
    )
    with engine_of(tiny("bert-mean")) as engine:
        asked: list[Callable[[], object]] = [
            lambda: engine.embed("tiny", "red", truncate=truncate),
            lambda: engine.embed_tokens("tiny", "red", truncate=truncate),
            lambda: engine.rerank("tiny", "red", ["red"], truncate=truncate),
            lambda: engine.tokenize("tiny", ["red"], truncate),
        ]
        for ask in asked:
            with pytest.raises(InputError) as caught:
                ask()
            assert str(caught.value) == message


def test_megabytes_are_cut_and_counted(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        found = engine.encode("tiny", ["red " * 300_000], truncate="end")
        alike = engine.embed("tiny", "red " * 62)
    assert (found.n_tokens.tolist(), found.n_cut.tolist()) == ([64], [300_000 - 62])
    np.testing.assert_allclose(found.vectors[0], alike, atol=1e-6)


def test_a_context_without_room_for_a_text_is_refused(tiny: TinyModel) -> None:
    with pytest.raises(ConfigError, match="n_ctx is 2; this model needs 2 special tokens and one of a text"):
        engine_of(tiny("bert-mean"), n_ctx=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_may_fill_the_context_whatever_the_batch(name: str, tiny: TinyModel) -> None:
    with engine_of(tiny(name), max_batch_tokens=16, max_batch_size=4) as engine:
        limit = engine.model_info("tiny").n_ctx
        [ids], [n_cut] = engine.tokenize("tiny", ["red blue " * limit], "end")
        assert (len(ids), n_cut > 0) == (limit, True)
        row = engine.embed("tiny", "red blue " * limit, truncate="end")
    expected = pooled(tiny(name), ids)
    assert row @ expected / np.linalg.norm(expected) > 0.9999


# Windows


@pytest.mark.parametrize("name", NAMES)
@given(n_words=st.lists(st.integers(1, 60), min_size=1, max_size=4), room=st.integers(1, 12), data=st.data())
def test_windows_cover_each_token_and_overlap_as_asked(
    name: str, n_words: list[int], room: int, data: st.DataObject, tiny: TinyModel
) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    weights = Weights(EngineConfig(model_path=str(tiny(name))), vocab_only=True)
    n_special = tokenizer_of(tiny(name)).n_special
    jobs = Jobs(EngineConfig(model_path=str(tiny(name)), n_ctx=n_special + room).checked(), weights)
    texts = [" ".join(f"{word}" for _, word in zip(range(n), TEXT.split() * 12, strict=False)) for n in n_words]
    call = jobs.encode(texts, EmbedOptions(window_overlap=overlap))
    assert call.owners is not None
    first, last = jobs.tokenizer.first, jobs.tokenizer.last
    for index, bare in enumerate(jobs.tokenizer.bare(texts)):
        windows = [ids for ids, owner in zip(call.tokens, call.owners, strict=True) if owner == index]
        read: list[int] = []
        for number, window in enumerate(windows):
            inner = window[len(first) : len(window) - len(last)].tolist()
            assert window.tolist() == [*first, *inner, *last]
            assert len(inner) == room or number == len(windows) - 1
            if number:
                assert inner[:overlap] == read[len(read) - overlap :]
                assert len(inner) > overlap
            read += inner[overlap if number else 0 :]
        assert read == bare.tolist()


@pytest.mark.parametrize("name", ["bert-mean", "xlm-roberta", "qwen3", "llama-embed"])
@pytest.mark.parametrize("normalization", ["l2", "l1", "max-abs", "none"])
def test_windows_are_merged_by_a_mean_weighted_by_tokens(name: str, normalization: str, tiny: TinyModel) -> None:
    path = tiny(name)
    first, pieces, last = PIECES[name]
    with engine_of(path, n_ctx=len(first) + len(last) + 4, normalization=normalization) as engine:
        found = engine.encode("tiny", [TEXT, "red"], window_overlap=2)
    windows = [pieces[0:4], pieces[2:5]]
    vectors = [pooled(path, ids_of(path, [*first, *window, *last])) for window in windows]
    mean = scaled((4 * scaled(vectors[0], normalization) + 3 * scaled(vectors[1], normalization)) / 7, normalization)
    alone = scaled(pooled(path, ids_of(path, [*first, pieces[0], *last])), normalization)
    for row, expected in zip(found.vectors, (mean, alone), strict=True):
        assert is_close(row, expected)
    n_special = len(first) + len(last)
    assert found.n_tokens.tolist() == [4 + 3 + 2 * n_special, 1 + n_special]
    assert found.n_cut.tolist() == [0, 0]


@pytest.mark.parametrize("normalization", ["l2", "l3", "max-abs", "none"])
def test_a_text_of_one_window_is_what_it_is_without(normalization: str, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), normalization=normalization) as engine:
        texts = ["red", TEXT, " ", "red " * 62]
        for text, row in zip(texts, engine.embed_batch("tiny", texts, window_overlap=9), strict=True):
            assert is_close(row, engine.embed("tiny", text))
        assert engine.encode("tiny", texts, window_overlap=9).n_tokens.tolist() == [3, 7, 2, 64]


def test_windows_of_no_texts_are_none(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        assert engine.encode("tiny", [], window_overlap=0).vectors.shape == (0, 32)


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["red"], {"window_overlap": 62}, InputError, "window_overlap is 62; this model's windows have 62 tokens"),
        (["red"], {"window_overlap": -1}, InputError, "window_overlap is -1; this model's windows have 62 tokens"),
        (["red"], {"window_overlap": 1, "truncate": "end"}, InputError, "truncate and window_overlap are two ways"),
        (["red", ""], {"window_overlap": 1}, EmptyInput, "text 1 is empty"),
        (["red", 3], {"window_overlap": 1}, InvalidText, "text 1 is int, not str"),
        ("red", {"window_overlap": 1}, InputError, "texts is one str"),
        (["red", "blue " * 200 + "poison"], {"window_overlap": 1}, EmbeddingFailed, "the model failed on text 1: "),
    ],
)
def test_windows_that_cannot_be_are_named(
    texts: Any, options: Any, error: type[Exception], message: str, tiny: TinyModel
) -> None:
    with engine_of(tiny("bert-mean")) as engine, pytest.raises(error) as caught:
        engine.embed_batch("tiny", texts, **options)
    assert str(caught.value).startswith(message)


def scaled(vector: NDArray[np.float64], normalization: str) -> NDArray[np.float64]:
    norms = {"none": 1.0, "max-abs": np.abs(vector).max() / 32760, "l1": np.abs(vector).sum()}
    return np.asarray(vector / norms.get(normalization, np.linalg.norm(vector)))


def is_close(row: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Tell whether two vectors are the same, but for llama.cpp's rounding."""
    return bool(np.linalg.norm(row - expected) < 0.01 * np.linalg.norm(expected))
