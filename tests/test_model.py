"""One context: confined to its thread, and never called in a way that would kill the process."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embellama import (
    EmbeddingFailed,
    EmbeddingModel,
    EmptyInput,
    EngineConfig,
    InputError,
    ModelError,
    TextTooLong,
    WrongThread,
)
from embellama.batch import Batch


@pytest.fixture
def model(tiny_path: str) -> EmbeddingModel:
    return EmbeddingModel(EngineConfig(model_path=tiny_path, model_name="tiny", max_batch_size=4, max_batch_tokens=32))


def batch(*lengths: int) -> Batch:
    return Batch(np.full(sum(lengths), 5, np.int32), np.array(lengths, np.int32))


@pytest.mark.parametrize("use", ["embed", "encode", "close"])
def test_another_thread_is_told_who_owns_the_model(model: EmbeddingModel, use: str) -> None:
    arguments: list[object] = {"embed": ["red"], "encode": [batch(3)], "close": []}[use]  # type: ignore[assignment]
    with ThreadPoolExecutor(1, "stranger") as thread, pytest.raises(WrongThread) as caught:
        thread.submit(getattr(model, use), *arguments).result()
    assert "model 'tiny' belongs to thread 'MainThread' of process" in str(caught.value)
    assert "from thread 'stranger_0'" in str(caught.value)


def test_pickling_says_who_owns_the_model(model: EmbeddingModel) -> None:
    with pytest.raises(WrongThread, match=r"belongs to thread 'MainThread' of process .* cannot be pickled"):
        pickle.dumps(model)


def test_embed_and_embed_batch_agree(model: EmbeddingModel) -> None:
    texts = ["red", "green blue " * 20, "one two three"] * 5
    rows = model.embed_batch(texts)
    assert rows.shape == (15, 32)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(row, model.embed(text), atol=2e-4)


def test_texts_may_come_from_a_generator_but_not_as_one_str(model: EmbeddingModel) -> None:
    assert model.embed_batch(word for word in ("red", "blue")).shape == (2, 32)
    with pytest.raises(InputError, match="texts is one str"):
        model.embed_batch("red")


def test_embed_batch_names_the_text_at_fault(model: EmbeddingModel) -> None:
    with pytest.raises(EmbeddingFailed, match="text 3"):
        model.embed_batch(["red", "green " * 30, "blue", "poison", "one"])


def test_what_would_abort_llama_cpp_is_an_error(model: EmbeddingModel) -> None:
    with pytest.raises(TextTooLong, match="has 65 tokens; the limit is 64"):
        model.encode(batch(65))
    with pytest.raises(ModelError, match="5 texts is larger than max_batch_size, 4"):
        model.encode(batch(1, 1, 1, 1, 1))
    with pytest.raises(EmptyInput, match="text 1 is empty"):
        model.encode(batch(1, 0))
    with pytest.raises(EmptyInput):
        model.encode(batch())
    with pytest.raises(ModelError, match="lengths sum to 3, but there are 2 tokens"):
        model.encode(Batch(np.full(2, 5, np.int32), np.array([3], np.int32)))
    assert model.encode(batch(64)).shape == (1, 32)


def test_a_closed_model_says_so(model: EmbeddingModel) -> None:
    model.close()
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.embed("red")


def test_thread_counts_change_the_last_bits_only(model: EmbeddingModel) -> None:
    np.testing.assert_allclose(model.encode(batch(9, 7), 1), model.encode(batch(9, 7), 2), atol=1e-5)
