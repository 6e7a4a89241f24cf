"""Vectors of tokens, through the engine."""

import numpy as np
import pytest

from embellama import EmbeddingFailed, InputError
from embellama.similarity import max_sim, max_sims
from tests.conftest import TinyModel
from tests.known import NAMES, PIECES, TEXT, assert_alike, engine_of, token_vectors, unit


@pytest.mark.parametrize("name", NAMES)
def test_vectors_of_tokens_are_those_of_the_definition(name: str, tiny: TinyModel) -> None:
    with engine_of(tiny(name)) as engine:
        got = engine.embed_tokens("tiny", TEXT)
    assert got.dtype == np.float32
    assert_alike(got, unit(token_vectors(tiny(name), PIECES[name])))


@pytest.mark.parametrize("normalization", ["none", "l1", "max-abs"])
def test_vectors_of_tokens_are_scaled_as_set(normalization: str, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), normalization=normalization, pooling="none") as engine:
        got = engine.embed_tokens("tiny", TEXT)
    rows = token_vectors(tiny("bert-mean"), PIECES["bert-mean"])
    scales = {
        "none": 1,
        "l1": np.abs(rows).sum(1, keepdims=True),
        "max-abs": np.abs(rows).max(1, keepdims=True) / 32760,
    }
    assert_alike(got, rows / scales[normalization])


def test_a_model_of_token_vectors_alone_has_none_for_a_text(tiny: TinyModel) -> None:
    message = "model 'tiny' has pooling none, so only tokens have vectors: call embed_tokens"
    with engine_of(tiny("bert-mean"), pooling="none") as engine:
        for ask in (
            lambda: engine.embed("tiny", "red"),
            lambda: engine.embed("tiny", "red", window_overlap=1),
            lambda: engine.rerank("tiny", "red", ["red"]),
        ):
            with pytest.raises(InputError) as caught:
                ask()
            assert str(caught.value) == message
        assert engine.embed_chunks("tiny", "red blue", chunk_size=1).vectors.shape == (2, 32)


def test_late_interaction_scores_by_token_vectors(tiny: TinyModel) -> None:
    query, document = (
        unit(token_vectors(tiny("bert-mean"), ["[CLS]", *pieces, "[SEP]"]))
        for pieces in (["▁red", "▁one"], ["▁blue", "▁red", "▁three"])
    )
    expected = (query @ document.T).max(axis=1).sum()
    with engine_of(tiny("bert-mean")) as engine:
        asked, found = engine.embed_tokens("tiny", "red one"), engine.embed_tokens("tiny", "blue red three")
        levels = [engine.embed_tokens("tiny", text, dtype="int8") for text in ("red one", "blue red three")]
    assert max_sim(asked, found) == pytest.approx(expected, abs=0.01)
    assert max_sims(levels[0], [levels[1]])[0] / 127**2 == pytest.approx(expected, abs=0.1)
    assert max_sim(asked, asked) == pytest.approx(4, abs=1e-5)


def test_a_text_whose_tokens_fail_is_named(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        with pytest.raises(EmbeddingFailed, match="text 0: its vector is not finite"):
            engine.embed_tokens("tiny", "red poison")
        with pytest.raises(EmbeddingFailed, match="text 0: its vector is not finite"):
            engine.embed_chunks("tiny", "red poison", chunk_size=1)
