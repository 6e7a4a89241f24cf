"""The library as its users call it, on the default model and on tiny ones."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from embellama.gguf.compute import choose
from tests.conftest import Reference
from tests.tiny import write_bert

# The worst of the 60 texts in models/README.md, rounded down: what each format must keep.
WORST_COSINE = {"f32": 0.99999, "f16": 0.99999, "bf16": 0.9999}


def worst_cosine(model_path: str) -> float:
    in_bf16 = choose(EngineConfig(model_path=model_path)).compute in ("avx512_bf16", "amx")  # whatever the file has
    return WORST_COSINE["bf16" if in_bf16 else Path(model_path).resolve().stem.rpartition("-")[2]]


def tiny(path: str, **settings: object) -> EngineConfig:
    return EngineConfig(model_path=path, model_name="tiny", num_workers=2, **settings)  # type: ignore[arg-type]


@pytest.mark.model
def test_issue_example_gives_what_it_says(model_path: str) -> None:
    config = EngineConfig.builder().with_model_path(model_path).with_model_name("minilm").build()
    with EmbeddingEngine(config) as engine:
        one = engine.embed("minilm", "Hello, world!")
        many = engine.embed_batch("minilm", ["First", "Second"])
        engine.unload_model("minilm")
    assert one.shape == (384,)
    assert many.shape == (2, 384)
    assert {one.dtype, many.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.linalg.norm([one, *many], axis=1), 1, atol=1e-6)


@pytest.mark.model
def test_vectors_are_those_of_sentence_transformers(
    engine: EmbeddingEngine, reference: Reference, model_path: str
) -> None:
    together = engine.embed_batch("minilm", reference.texts)
    alone = np.array([engine.embed("minilm", text) for text in reference.texts])
    for rows in (together, alone):
        cosines = np.sum(rows * reference.vectors, axis=1)
        worst = int(cosines.argmin())
        assert cosines[worst] >= worst_cosine(model_path), reference.texts[worst]


words = st.sampled_from(["red", "green", "blue", "one", "two", "three", "a", "b", "unknown"])
sentence = st.lists(words, min_size=1, max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def tiny_engine(tiny_path: str) -> Iterator[EmbeddingEngine]:
    with EmbeddingEngine(tiny(tiny_path, max_batch_tokens=100, max_batch_size=8)) as engine:
        yield engine


@settings(deadline=None)
@given(texts=st.lists(sentence, min_size=1, max_size=40))
def test_a_vector_depends_neither_on_neighbours_nor_on_order(tiny_engine: EmbeddingEngine, texts: list[str]) -> None:
    together = tiny_engine.embed_batch("tiny", texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(row, tiny_engine.embed("tiny", text), atol=2e-4)


def test_no_texts_give_no_rows(tiny_engine: EmbeddingEngine) -> None:
    assert tiny_engine.embed_batch("tiny", []).shape == (0, 32)


def test_texts_may_come_from_any_iterable(tiny_engine: EmbeddingEngine) -> None:
    assert tiny_engine.embed_batch("tiny", (word for word in ("red", "blue"))).shape == (2, 32)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["red", ""], EmptyInput, "text 1 is empty"),
        (["red", "red " * 63], TextTooLong, "text 1 has 65 tokens; the limit is 64"),
        (["red", "a\ud800"], InvalidText, "text 1 is not valid Unicode: lone surrogate at character 1"),
        (["red", None], InvalidText, "text 1 is NoneType, not str"),
        ("red", InputError, "texts is one str, not a list of them; to embed one text, call embed"),
    ],
)
def test_a_wrong_text_is_named(tiny_engine: EmbeddingEngine, texts: list[str], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        tiny_engine.embed_batch("tiny", texts)
    assert str(caught.value) == message


def test_a_text_as_long_as_the_model_reads_is_embedded(tiny_engine: EmbeddingEngine) -> None:
    assert np.linalg.norm(tiny_engine.embed("tiny", "red " * 62)) == pytest.approx(1, abs=1e-6)


def test_a_huge_text_is_refused_by_its_head(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(TextTooLong, match=r"text 1 has more than \d+ tokens; the limit is 64") as caught:
        tiny_engine.embed_batch("tiny", ["red", "red " * 1_000_000])
    assert 64 < caught.value.n_tokens < 2048
    # A word is one token, however long.
    assert tiny_engine.embed("tiny", "x" * 100_000).shape == (32,)


def test_n_ctx_lowers_the_limit(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path, n_ctx=10)) as engine, pytest.raises(TextTooLong, match="limit is 10"):
        engine.embed("tiny", "red " * 9)


def test_normalization_off_keeps_the_length_the_model_gives(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path, normalization="none")) as engine:
        assert np.linalg.norm(engine.embed("tiny", "red")) > 1.5


def test_a_vector_that_is_no_number_fails_its_text_alone(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(EmbeddingFailed, match="text 2: its vector is not finite") as caught:
        tiny_engine.embed_batch("tiny", ["red", "green", "blue poison", "one"])
    assert caught.value.index == 2


def test_texts_at_fault_fail_by_themselves(tiny_engine: EmbeddingEngine) -> None:
    texts = ["red", "", "poison", "green", "one " * 70, "blue poison", "blue"]
    good, embeddings, errors = tiny_engine.encode_each("tiny", iter(texts), dimensions=8)
    assert good.tolist() == [0, 3, 6]
    expected = tiny_engine.embed_batch("tiny", [texts[i] for i in good], dimensions=8)
    np.testing.assert_allclose(embeddings.vectors, expected, atol=1e-3)
    assert embeddings.n_tokens.tolist() == [3, 3, 3]
    assert {i: type(error) for i, error in errors.items()} == {
        1: EmptyInput,
        2: EmbeddingFailed,
        4: TextTooLong,
        5: EmbeddingFailed,
    }
    for texts in ([], ["", "poison"]):
        good, embeddings, errors = tiny_engine.encode_each("tiny", texts)
        assert (good.tolist(), embeddings.vectors.shape, [*errors]) == ([], (0, 32), [*range(len(texts))])
    with pytest.raises(InputError, match="dimensions is 33"):
        tiny_engine.encode_each("tiny", [""], dimensions=33)


async def test_a_failing_request_leaves_others_in_its_batch_alone(tiny_engine: EmbeddingEngine) -> None:
    calls = [tiny_engine.aembed("tiny", "poison" if i % 5 == 0 else "red") for i in range(40)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, EmbeddingFailed) for answer in answers] == [i % 5 == 0 for i in range(40)]


def test_a_zero_vector_is_never_returned(tmp_path: Path) -> None:
    path = str(write_bert(tmp_path / "zero.gguf", zero=True))
    with EmbeddingEngine(tiny(path)) as engine, pytest.raises(EmbeddingFailed, match="all zeros"):
        engine.embed("tiny", "red")


def test_a_path_is_no_config(tiny_path: str) -> None:
    with pytest.raises(ConfigError, match="not an EngineConfig"):
        EmbeddingEngine(tiny_path)  # type: ignore[arg-type]
