"""Vectors scaled, or left as the model pooled them, as each call asks."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embellama import EmbeddingEngine, EmbeddingFailed, EmbeddingModel, EngineConfig, InputError, InvalidOption
from embellama.batch import Batch, RowKind, Rows
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.options import EmbedOptions
from embellama.outputs import normalization_of_call, normalize
from tests.conftest import TinyModel
from tests.forward import pooled
from tests.forward.model import Model
from tests.known import NAMES, PIECES, TEXT, assert_alike, engine_of, unit
from tests.tiny import ARCHITECTURES

SETTINGS = ("l2", "l1", "max-abs", "none")


def ids_of(path: Path, name: str) -> list[int]:
    vocabulary = Model(path).get("tokenizer.ggml.tokens")
    return [vocabulary.index(piece) for piece in PIECES[name]]


# One context


def model_of(path: Path, **options: Any) -> EmbeddingModel:
    return EmbeddingModel(EngineConfig(model_path=str(path), n_threads=1, max_batch_tokens=256, **options))


@pytest.mark.parametrize("normalization", SETTINGS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean-sqrt"])
def test_a_pooled_row_once_scaled_is_the_texts_row_to_the_bit(
    pooling: Any, normalization: str, tiny: TinyModel
) -> None:
    texts = [np.arange(n, dtype=np.int32) % 20 + 12 for n in (3, 1, 17, 40)]
    with model_of(tiny("bert-mean"), pooling=pooling, normalization=normalization) as model:
        scaled = model.encode(Batch.join(texts))
        rows = model.encode(Batch.join(texts, [RowKind.POOLED] * len(texts)))
    np.testing.assert_array_equal(normalize(rows, normalization), scaled)


@pytest.fixture(scope="module")
def model(tiny_path: str) -> EmbeddingModel:
    return model_of(Path(tiny_path))


some_texts = st.lists(
    st.tuples(st.lists(st.integers(12, 30), min_size=1, max_size=20), st.sampled_from(RowKind)), min_size=1, max_size=8
)


@given(asked=some_texts)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_texts_of_any_kinds_share_a_batch_and_get_the_rows_they_get_alone(
    model: EmbeddingModel, asked: list[tuple[list[int], RowKind]]
) -> None:
    texts = [np.array(ids, np.int32) for ids, _ in asked]
    kinds = [kind for _, kind in asked]
    batch = Batch.join(texts, kinds)
    found = np.split(model.encode(batch), np.cumsum(batch.n_rows)[:-1])
    for text, kind, rows in zip(texts, kinds, found, strict=True):
        alone = model.encode(Batch.join([text], [kind]))
        assert rows.shape == (len(text) if kind == RowKind.TOKEN else 1, model.dim)
        np.testing.assert_allclose(rows, alone, atol=2e-3 * np.abs(alone).max())
    for kind in set(kinds) - {RowKind.TOKEN}:  # the same llama.cpp call, so the same bits
        same = model.encode(Batch.join(texts, [kind] * len(texts)))
        for i, rows in enumerate(found):
            if kinds[i] == kind:
                np.testing.assert_array_equal(rows[0], same[i])


def test_a_batch_of_texts_alone_carries_no_kinds() -> None:
    texts = [np.array([5, 6], np.int32)] * 3
    assert Batch.join(texts, [RowKind.TEXT] * 3).kinds is None
    kinds = Batch.join(texts, [RowKind.TEXT, RowKind.POOLED, RowKind.TOKEN]).kinds
    assert kinds is not None
    assert kinds.dtype == np.uint8
    assert kinds.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kinds", [[RowKind.POOLED] * 3, [RowKind.TOKEN, RowKind.POOLED, RowKind.TEXT]])
def test_what_is_no_vector_leaves_in_no_kind_of_row(kinds: list[RowKind], model: EmbeddingModel) -> None:
    [poison] = model.tokenizer.encode(["poison"]).tokens
    with pytest.raises(EmbeddingFailed, match="not finite"):
        model.encode(Batch.join([poison] * 3, kinds))
    for kind in RowKind:
        with pytest.raises(EmbeddingFailed, match="the model failed on text 0: its vector is not finite"):
            model.encode(Batch.join([poison], [kind]))


@pytest.mark.parametrize("kind", [RowKind.TEXT, RowKind.POOLED])
def test_a_model_of_token_vectors_alone_has_no_other_kind(kind: RowKind, tiny: TinyModel) -> None:
    with (
        model_of(tiny("bert-mean"), pooling="none") as model,
        pytest.raises(InputError, match="pooling is none, so a text has no vector"),
    ):
        model.encode(Batch.join([np.array([5, 6], np.int32)], [kind]))


def test_a_reranker_has_no_vectors_to_scale(tiny: TinyModel) -> None:
    path = tiny(next(name for name, each in ARCHITECTURES.items() if each.reranker))
    with model_of(path) as model, pytest.raises(InputError, match="a reranker gives scores, no vectors"):
        model.encode(Batch.join([np.array([5, 6], np.int32)], [RowKind.POOLED]))


# The engine


@pytest.mark.parametrize("name", NAMES)
def test_an_unscaled_vector_is_the_pooled_one_of_the_definition(name: str, tiny: TinyModel) -> None:
    with engine_of(tiny(name)) as engine:
        row = engine.embed("tiny", TEXT, normalize=False)
        scaled = engine.embed("tiny", TEXT)
        same = engine.embed("tiny", TEXT, normalize=True)
    assert_alike(row, pooled(tiny(name), ids_of(tiny(name), name)))
    np.testing.assert_array_equal(normalize(row[None])[0], scaled)
    np.testing.assert_array_equal(same, scaled)


def every_output(engine: EmbeddingEngine, options: dict[str, Any]) -> list[Rows]:
    """Ask for vectors of texts, windows, tokens and chunks."""
    texts = [TEXT, "red", "blue one " * 60]
    return [
        engine.embed_batch("tiny", texts, truncate="end", **options),
        engine.embed_batch("tiny", texts, window_overlap=4, **options),
        engine.embed_query("tiny", texts[:2], **options),
        np.array(list(engine.embed_stream("tiny", texts[:2], **options))),
        engine.embed_tokens("tiny", TEXT, **options),
        engine.embed_chunks("tiny", TEXT, chunk_size=3, **options).vectors,
    ]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize(
    "options", [{}, {"dimensions": 5}, {"dtype": "float16"}, {"dimensions": 9, "dtype": "ubinary"}]
)
def test_a_call_gets_what_a_model_with_that_setting_gives(
    setting: str, normalize: bool | None, options: dict[str, Any], tiny: TinyModel
) -> None:
    mode = {None: setting, True: "l2" if setting == "none" else setting, False: "none"}[normalize]
    with engine_of(tiny("bert-mean"), normalization=setting) as engine:
        found = every_output(engine, {"normalize": normalize, **options})
    with engine_of(tiny("bert-mean"), normalization=mode) as engine:
        expected = every_output(engine, options)
    for rows, wanted in zip(found, expected, strict=True):
        assert rows.dtype == wanted.dtype
        np.testing.assert_allclose(rows.astype(float), wanted.astype(float), rtol=1e-6, atol=1e-6)


def test_an_unscaled_vector_is_cut_and_not_scaled_again(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        row = engine.embed("tiny", TEXT, normalize=False)
        np.testing.assert_array_equal(engine.embed("tiny", TEXT, normalize=False, dimensions=7), row[:7])
    assert abs(np.linalg.norm(row) - 1) > 0.01


async def test_calls_of_all_kinds_at_once_get_what_they_ask_for(tiny: TinyModel) -> None:
    texts = ["red", "green blue", TEXT, "one two three"] * 4
    with engine_of(tiny("bert-mean"), num_workers=2) as engine:
        scaled, rows, tokens, again = await asyncio.gather(
            engine.aembed_batch("tiny", texts),
            engine.aembed_batch("tiny", texts, normalize=False),
            engine.aembed_tokens("tiny", TEXT, normalize=False),
            engine.aembed_batch("tiny", texts, normalize=True),
        )
        alone = engine.embed_tokens("tiny", TEXT)
    np.testing.assert_allclose(unit(rows), scaled, atol=2e-3)
    np.testing.assert_allclose(again, scaled, atol=2e-3)
    np.testing.assert_allclose(unit(tokens), alone, atol=2e-3)


def test_int8_of_unscaled_vectors_needs_a_limit(tiny: TinyModel) -> None:
    message = "dtype is int8, which holds -1 to 1; vectors with normalization none need another limit"
    calls: list[Callable[[EmbeddingEngine], Any]] = [
        lambda engine: engine.embed("tiny", "red", normalize=False, dtype="int8"),
        lambda engine: engine.embed_tokens("tiny", "red", normalize=False, dtype="int8"),
        lambda engine: engine.embed_chunks("tiny", "red", chunk_size=1, normalize=False, dtype="int8"),
    ]
    with engine_of(tiny("bert-mean")) as engine:
        for ask in calls:
            with pytest.raises(InputError, match=message):
                ask(engine)
        assert engine.embed("tiny", "red", normalize=False, dtype="ubinary").shape == (4,)
    with engine_of(tiny("bert-mean"), normalization="none") as engine:
        assert engine.embed("tiny", "red", normalize=True, dtype="int8").dtype == np.int8
    with engine_of(tiny("bert-mean"), int8_limit=4.0) as engine:
        assert [ask(engine) is not None for ask in calls] == [True] * 3


@pytest.mark.parametrize("value", ["false", 0, 1, "l2"])
def test_a_normalize_that_is_no_bool_is_named(value: Any, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine, pytest.raises(InvalidOption) as caught:
        engine.embed("tiny", "red", normalize=value)
    assert str(caught.value) == f"normalize is {value!r}; it must be True, False or None"
    assert normalization_of_call(np.bool_(False), "l2") == "none"  # type: ignore[arg-type]


def test_only_a_call_that_differs_from_the_setting_asks_for_another_kind(tiny: TinyModel) -> None:
    for setting in SETTINGS:
        config = EngineConfig(model_path=str(tiny("bert-mean")), normalization=setting).checked()
        jobs = Jobs(config, Weights(config, vocab_only=True))
        for asked in (None, True, False):
            kind = RowKind.POOLED if asked is False and setting != "none" else RowKind.TEXT
            for options in (EmbedOptions(normalize=asked), EmbedOptions(normalize=asked, window_overlap=1)):
                assert jobs.encode(["red"], options).kind == kind
            assert jobs.encode_ids([[5]], EmbedOptions(normalize=asked)).kind == kind
