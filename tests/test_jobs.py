"""What an engine can be asked beside one vector for a text: tokens, chunks, prompts, outputs; through the engine."""

import itertools
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
    EmbeddingEngine,
    EmbeddingFailed,
    EmptyInput,
    EngineConfig,
    InputError,
    InvalidOption,
    InvalidText,
    TextTooLong,
)
from embellama.errors import PromptError
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.options import ChunkOptions
from embellama.outputs import Dtype
from embellama.similarity import max_sim, max_sims
from embellama.text.tokenizer import Tokenizer
from tests.conftest import Reference, TinyModel
from tests.forward import forward, pooled
from tests.forward.model import Model

Array = NDArray[Any]

# What "red three blue one" is, for each kind of vocabulary and of special tokens.
PIECES = {
    "bert-mean": ["[CLS]", "▁red", "▁three", "▁blue", "▁one", "[SEP]"],
    "t5encoder": ["▁red", "▁three", "▁blue", "▁one", "</s>"],
    "xlm-roberta": ["<s>", "▁red", "▁three", "▁blue", "▁one", "</s>"],
    "modern-bert": ["[CLS]", "red", "Ġthree", "Ġblue", "Ġone", "[SEP]"],
    "qwen3": ["red", "Ġthree", "Ġblue", "Ġone", "<|endoftext|>"],
    "llama-embed": ["<|begin_of_text|>", "red", "Ġthree", "Ġblue", "Ġone"],
    "gemma-embedding-dense": ["<bos>", "red", "▁three", "▁blue", "▁one", "<eos>"],
    "mistral": ["<s>", "▁red", "▁three", "▁blue", "▁one", "</s>"],
}
TEXT = "red three blue one"
NAMES = list(PIECES)


def engine_of(path: Path | str, **settings: Any) -> EmbeddingEngine:
    settings = {"model_name": "tiny", "num_workers": 1, "n_threads": 1, **settings}
    return EmbeddingEngine(EngineConfig(model_path=str(path), **settings))


@cache
def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=str(path)), vocab_only=True))


def token_vectors(path: Path, pieces: list[str]) -> Array:
    """Compute a text's token vectors by the definition, ``(n_tokens, dim)``."""
    vocabulary = Model(path).get("tokenizer.ggml.tokens")
    return forward(path, [vocabulary.index(piece) for piece in pieces])


def first_of(name: str) -> int:
    """Count the special tokens before a text."""
    return int(PIECES[name][0].strip("▁") != "red")


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def assert_alike(rows: Array, expected: Array) -> None:
    """Check that vectors are those expected, length included, but for llama.cpp's rounding."""
    assert rows.shape == expected.shape
    assert (np.linalg.norm(rows - expected, axis=-1) < 0.015 * np.linalg.norm(expected, axis=-1)).all()


# Tokens


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


# Chunks


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


# Outputs


def written(row: Array, dtype: Dtype) -> Array:
    """Write a unit vector as docs/outputs.md says."""
    bits = np.packbits(row > 0)
    values: dict[str, Array] = {
        "float32": row,
        "float16": row.astype(np.float16),
        "int8": np.rint(row.astype(np.float64) * 127).astype(np.int8),
        "uint8": (np.rint(row.astype(np.float64) * 127) + 128).astype(np.uint8),
        "ubinary": bits,
        "binary": (bits.astype(int) - 128).astype(np.int8),
    }
    return values[dtype]


@pytest.mark.parametrize("dimensions", [None, 32, 13, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_every_kind_of_vector_is_cut_and_written(dtype: Dtype, dimensions: int | None, tiny: TinyModel) -> None:
    options: Any = {"dtype": dtype, "dimensions": dimensions}
    texts = ["red", TEXT, "blue " * 62]
    with engine_of(tiny("bert-mean"), n_ctx=40) as engine:
        pairs = [
            (
                engine.encode("tiny", texts, truncate="end", **options).vectors,
                engine.encode("tiny", texts, truncate="end").vectors,
            ),
            (
                engine.encode("tiny", texts, window_overlap=3, **options).vectors,
                engine.encode("tiny", texts, window_overlap=3).vectors,
            ),
            (engine.embed_query("tiny", texts[:2], **options), engine.embed_query("tiny", texts[:2])),
            (engine.embed_tokens("tiny", TEXT, **options), engine.embed_tokens("tiny", TEXT)),
            (
                engine.embed_chunks("tiny", TEXT, chunk_size=3, **options).vectors,
                engine.embed_chunks("tiny", TEXT, chunk_size=3).vectors,
            ),
        ]
    for got, whole in pairs:
        kept = whole if dimensions in (None, 32) else unit(whole[:, :dimensions].astype(np.float64)).astype(np.float32)
        expected = np.array([written(row, dtype) for row in kept])
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        # The last digit may be rounded otherwise.
        np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), atol=_step(dtype))


def _step(dtype: str) -> float:
    return {"float32": 1e-6, "float16": 1e-3, "int8": 1, "uint8": 1}.get(dtype, 0)


@pytest.mark.parametrize("normalization", ["l1", "l2", "l3", "max-abs", "none"])
@pytest.mark.parametrize("dimensions", [None, 5])
def test_vectors_are_scaled_as_set_also_when_cut(normalization: str, dimensions: int | None, tiny: TinyModel) -> None:
    path = tiny("bert-mean")
    vocabulary = Model(path).get("tokenizer.ggml.tokens")
    row = pooled(path, [vocabulary.index(piece) for piece in PIECES["bert-mean"]])[:dimensions]
    scale = {
        "l1": np.abs(row).sum(),
        "l2": np.sqrt((row**2).sum()),
        "l3": np.cbrt((np.abs(row) ** 3).sum()),
        "max-abs": np.abs(row).max() / 32760,
        "none": 1.0,
    }[normalization]
    with engine_of(path, normalization=normalization) as engine:
        assert_alike(engine.embed("tiny", TEXT, dimensions=dimensions), row / scale)


def test_a_limit_of_int8_is_the_configs(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), int8_limit=0.25) as engine:
        row = engine.embed("tiny", TEXT)
        got = engine.embed("tiny", TEXT, dtype="int8")
    assert np.abs(row).max() > 0.25
    np.testing.assert_allclose(got, np.rint(row.clip(-0.25, 0.25) / 0.25 * 127), atol=1)
    assert np.abs(got.astype(int)).max() == 127


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions is 0; this model gives 1 to 32"),
        ({"dimensions": 33}, "dimensions is 33; this model gives 1 to 32"),
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of float32, float16, int8, uint8, binary, ubinary"),
        ({"dtype": None}, "dtype is None; it must be one of"),
    ],
)
def test_an_output_there_is_none_of_is_named_before_anything_is_computed(
    options: Any, message: str, tiny: TinyModel
) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        for ask in (
            lambda: engine.embed("tiny", "poison", **options),
            lambda: engine.embed("tiny", "poison", window_overlap=1, **options),
            lambda: engine.embed_tokens("tiny", "poison", **options),
            lambda: engine.embed_chunks("tiny", "poison", chunk_size=1, **options),
        ):
            with pytest.raises(InputError) as caught:
                ask()
            assert str(caught.value).startswith(message)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_vectors_of_any_length_need_a_limit_for_int8(dtype: Dtype, tiny: TinyModel) -> None:
    with (
        engine_of(tiny("bert-mean"), normalization="none") as engine,
        pytest.raises(InputError, match=f"dtype is {dtype}, which holds -1 to 1; vectors with normalization none need"),
    ):
        engine.embed("tiny", "red", dtype=dtype)
    with engine_of(tiny("bert-mean"), normalization="none", int8_limit=4.0) as engine:
        assert engine.embed("tiny", "red", dtype=dtype).dtype == dtype


# Prompts


def test_a_prompt_is_written_around_each_text(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        np.testing.assert_allclose(engine.embed_query(None, "red"), engine.embed(None, "query: red"), atol=2e-3)
        documents = engine.embed_document(None, ["red", "blue"])
        assert_alike(documents, engine.embed_batch(None, ["passage: red", "passage: blue"]))
        assert_alike(engine.embed_document(None, "red"), documents[0])
        assert_alike(engine.embed(None, "red", prompt="passage"), documents[0])
        assert_alike(engine.embed_query(None, "red", prompt="document"), documents[0])
        # Its tokens are the text's, and count.
        assert engine.embed_tokens(None, "red", prompt="query").shape == engine.embed_tokens(None, "query: red").shape
        n_tokens = engine.encode(None, ["red"], prompt="query").n_tokens
        assert n_tokens.tolist() == engine.encode(None, ["query: red"]).n_tokens.tolist()
        # A text embedded without naming one stays as it is.
        assert engine.encode(None, ["red"]).n_tokens.tolist() == [3]


async def test_awaitable_twins_write_prompts_too(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        assert_alike(await engine.aembed_query(None, "red"), engine.embed_query(None, "red"))
        assert_alike(await engine.aembed_document(None, ["red", "one"]), engine.embed_document(None, ["red", "one"]))
        assert_alike(await engine.aembed_tokens(None, "red"), engine.embed_tokens(None, "red"))
        chunks = await engine.aembed_chunks(None, TEXT, chunk_size=2)
        assert_alike(chunks.vectors, engine.embed_chunks(None, TEXT, chunk_size=2).vectors)
        ranking = await engine.arerank(None, "red", ["one", "red"], 1)
        assert [ranked.index for ranked in ranking.results] == [
            ranked.index for ranked in engine.rerank(None, "red", ["one", "red"], 1).results
        ]


def test_fields_are_put_in(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="embeddinggemma") as engine:
        got = engine.embed_document(None, "red", fields={"title": "{text} one"})
        assert_alike(got, engine.embed(None, "title: {text} one | text: red"))
        assert_alike(engine.embed_document(None, "red"), engine.embed(None, "title: none | text: red"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": "code"}, PromptError, "prompt 'code' is not one of this model's: query, document"),
        ({"prompt": "query"}, PromptError, "prompt 'query' needs the field 'task'"),
        ({"prompt": "query", "fields": {"task": 3}}, PromptError, "prompt 'query' needs a str for 'task', not int"),
        ({"prompt": "document", "fields": {"task": "a"}}, PromptError, "prompt 'document' has no field 'task'"),
        ({"fields": {"task": "a", "b": "c"}}, InputError, "fields are given (task, b), but no prompt to put them in"),
    ],
)
def test_a_prompt_or_field_that_is_missing_or_unknown_is_named(
    options: Any, error: type[Exception], message: str, tiny: TinyModel, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('[[models]]\nmatch = ["tiny"]\n[models.prompts]\nquery = "{task}: {text}"\n')
    with engine_of(tiny("bert-mean"), prompts_file=str(prompts)) as engine:
        assert_alike(engine.embed_query("tiny", "red", fields={"task": "one"}), engine.embed("tiny", "one: red"))
        asked: list[Callable[[], object]] = [
            lambda: engine.embed("tiny", "red", **options),
            lambda: engine.embed("tiny", "red", window_overlap=1, **options),
            lambda: engine.embed_tokens("tiny", "red", **options),
        ]
        for ask in asked:
            with pytest.raises(error) as caught:
                ask()
            assert str(caught.value).startswith(message)


def test_errors_of_prompted_texts_name_the_caller_s(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        with pytest.raises(EmptyInput, match="text 1 is empty"):
            engine.embed_query(None, ["red", ""])
        with pytest.raises(InvalidText, match="text 1 is int, not str"):
            engine.embed_query(None, ["red", 3])  # type: ignore[list-item]


@pytest.mark.parametrize("value", [0, 2.5, "3", True])
def test_options_are_whole_numbers(value: Any, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        asked: dict[str, Callable[[], object]] = {
            "dimensions": lambda: engine.embed("tiny", "red", dimensions=value),
            "chunk_size": lambda: engine.embed_chunks("tiny", "red", chunk_size=value),
            "top_n": lambda: engine.rerank("tiny", "red", ["blue"], value),
        }
        if value != 0:
            asked["window_overlap"] = lambda: engine.embed("tiny", "red", window_overlap=value)
        for option, ask in asked.items():
            with pytest.raises(InvalidOption, match=f"^{option} is {value!r}; "):
                ask()


def test_a_whole_number_may_be_numpy_s(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        assert engine.embed("tiny", "red", dimensions=np.int64(4), truncate=np.int32(5)).shape == (4,)  # type: ignore[arg-type]
