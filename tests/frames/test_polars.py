"""Expressions of Polars, in every context. `test_oldest` runs this file with the oldest Polars that is supported."""

import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embellama.polars
from embellama import ConfigError, EmbeddingEngine, InputError, InvalidOption, ModelError, ModelLoadError
from embellama.frames.models import engines
from embellama.similarity import cosine
from tests.conftest import TinyModel
from tests.tiny import POISON, WORDS

DIM = 32

# A text's neighbours in a batch change its last digits.
CLOSE = 2e-4

TEXTS = st.lists(st.sampled_from([word for word in WORDS if word != POISON]), min_size=1, max_size=5).map(" ".join)
COLUMNS = st.lists(st.none() | TEXTS, max_size=12)

Context = Callable[[pl.DataFrame, pl.Expr], pl.Series]


def streaming(frame: pl.DataFrame, expr: pl.Expr) -> pl.Series:
    return frame.lazy().select(v=expr).collect(engine="streaming")["v"]


def grouped(frame: pl.DataFrame, expr: pl.Expr) -> pl.Series:
    """Return the lists of all groups one behind another; a frame is sorted by them."""
    return frame.group_by("group", maintain_order=True).agg(v=expr).explode("v")["v"]


CONTEXTS: dict[str, Context] = {
    "select": lambda frame, expr: frame.select(v=expr)["v"],
    "with_columns": lambda frame, expr: frame.with_columns(v=expr)["v"],
    "lazy": lambda frame, expr: frame.lazy().select(v=expr).collect()["v"],
    "streaming": streaming,
    "filter": lambda frame, expr: frame.filter(expr.is_not_null() | expr.is_null()).select(v=expr)["v"],
    "group_by": grouped,
    "group_by, streaming": lambda frame, expr: (
        frame.lazy().group_by("group", maintain_order=True).agg(v=expr).explode("v").collect(engine="streaming")["v"]
    ),
    "over": lambda frame, expr: frame.select(v=expr.over("group"))["v"],
}


@pytest.fixture(autouse=True)
def small_slices() -> Iterator[None]:
    with pl.Config(streaming_chunk_size=3):
        yield


def chunked(texts: list[str | None]) -> pl.DataFrame:
    """Make a frame whose column has two chunks, neither of which begins where its buffer does, in groups of four."""
    half = len(texts) // 2
    parts = [pl.Series("text", ["x", *part], pl.String)[1:] for part in (texts[:half], texts[half:])]
    frame = pl.concat([part.to_frame() for part in parts], rechunk=False)
    return frame.with_columns(group=pl.int_range(pl.len()) // 4)


def expected(engine: EmbeddingEngine, texts: list[str | None], **options: Any) -> list[Any]:
    given = [text for text in texts if text]
    rows: Iterator[Any] = iter(engine.embed_batch(None, given, **options) if given else [])
    return [next(rows) if text else None for text in texts]


def check_same(found: pl.Series, rows: list[Any]) -> None:
    assert [each is None for each in found.to_list()] == [row is None for row in rows]
    for each, row in zip(found.to_list(), rows, strict=True):
        if row is not None:
            np.testing.assert_allclose(np.array(each, np.float64), row.astype(np.float64), atol=CLOSE)


@pytest.mark.parametrize("context", CONTEXTS)
@given(texts=COLUMNS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_embed_gives_what_embed_batch_gives_in_each_context(
    tiny_engine: EmbeddingEngine, context: str, texts: list[str | None]
) -> None:
    found = CONTEXTS[context](chunked(texts), pl.col("text").embellama.embed(tiny_engine))  # type: ignore[attr-defined]
    assert found.dtype == pl.Array(pl.Float32, DIM)
    check_same(found, expected(tiny_engine, texts))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary", "float16"])
@given(texts=COLUMNS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_embed_takes_the_options_of_embed_batch(
    tiny_engine: EmbeddingEngine, dtype: Any, texts: list[str | None]
) -> None:
    options: dict[str, Any] = {"dtype": dtype, "dimensions": 24, "prompt": "query"}
    if dtype == "float16" and not hasattr(pl, "Float16"):
        with pytest.raises(InvalidOption, match=r"which Polars .* does not have"):
            embed("text", tiny_engine, **options)
        return
    found = chunked(texts).select(v=embed("text", tiny_engine, **options))["v"]
    numbers = {"binary": pl.Int8, "ubinary": pl.UInt8, "int8": pl.Int8, "uint8": pl.UInt8}.get(dtype)
    assert found.dtype == pl.Array(numbers or pl.Float16, 3 if "binary" in dtype else 24)
    for each, row in zip(found.to_list(), expected(tiny_engine, texts, **options), strict=True):
        assert (each is None) == (row is None)
        if dtype in ("int8", "uint8", "float16") and row is not None:
            np.testing.assert_allclose(np.array(each, float), row.astype(float), atol=1 if "int8" in dtype else 1e-3)


def embed(column: str, model: Any, **options: Any) -> pl.Expr:
    made: pl.Expr = pl.col(column).embellama.embed(model, **options)  # type: ignore[attr-defined]
    return made


@given(
    lists=st.lists(st.none() | st.lists(st.none() | TEXTS, max_size=4), max_size=8),
    context=st.sampled_from([*CONTEXTS]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_of_texts_become_lists_of_vectors(
    tiny_engine: EmbeddingEngine, lists: list[list[str | None] | None], context: str
) -> None:
    frame = pl.DataFrame({"lists": pl.Series(lists, dtype=pl.List(pl.String))})
    frame = frame.with_columns(group=pl.int_range(pl.len()) // 3)
    found = CONTEXTS[context](frame, embed("lists", tiny_engine))
    assert found.dtype == pl.List(pl.Array(pl.Float32, DIM))
    for each, texts in zip(found, lists, strict=True):
        assert (each is None) == (texts is None)
        if texts is not None:
            check_same(each, expected(tiny_engine, texts))


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["blue", "green", "red"])])
def test_texts_may_be_of_any_type_of_text(tiny_engine: EmbeddingEngine, dtype: Any) -> None:
    texts = ["red", None, "green", "red"]
    frame = pl.DataFrame({"text": pl.Series(texts).cast(dtype)})
    check_same(frame.select(embed("text", tiny_engine))["text"], expected(tiny_engine, texts))


def test_a_template_makes_texts_of_structs(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"a": ["red", None, "green", "blue"], "n": [1, 2, None, 4], "c": ["x", "y", "x", "y"]})
    frame = frame.with_columns(pl.col("c").cast(pl.Categorical))
    together = pl.struct("a", "n", "c").embellama.embed(tiny_engine, template="{{{a}}}: {n} {c}")  # type: ignore[attr-defined]
    found = frame.lazy().select(v=together).collect(engine="streaming")["v"]
    check_same(found, expected(tiny_engine, ["{red}: 1 x", None, None, "{blue}: 4 y"]))
    nothing = pl.DataFrame({"s": pl.Series([None], dtype=pl.Struct({"a": pl.String}))})
    assert nothing.select(embed("s", tiny_engine, template="{a}"))["s"].to_list() == [None]


@pytest.mark.parametrize("dtype", [pl.String, pl.Null, pl.List(pl.String), pl.Categorical])
@pytest.mark.parametrize("n", [0, 3])
def test_columns_without_any_text_keep_their_type_and_load_no_model(
    tiny_path: str, dtype: Any, n: int, computed: list[int]
) -> None:
    frame = pl.DataFrame({"text": pl.Series([None] * n, dtype=dtype)})
    for context in ("select", "lazy", "streaming"):
        found = CONTEXTS[context](frame, embed("text", tiny_path))
        assert found.dtype == frame.lazy().select(embed("text", tiny_path)).collect_schema()["text"]
        assert found.to_list() == [None] * n
    assert not computed


def test_a_schema_is_known_and_no_model_is_loaded_for_it(model_path: str) -> None:
    frame = pl.LazyFrame({"text": ["red"], "lists": [["red"]]})
    before = {*engines._things}
    several = frame.select(
        pl.all().name.keep(),
        a=embed("text", model_path),
        b=embed("lists", model_path, dtype="ubinary"),
        c=embed("text", model_path, as_struct=True),
        d=embed("text", model_path).embellama.cosine([1.0] * 384),  # type: ignore[attr-defined]
    )
    schema = several.collect_schema()
    assert schema["a"] == pl.Array(pl.Float32, 384)
    assert schema["b"] == pl.List(pl.Array(pl.UInt8, 48))
    counts = {"n_tokens": pl.Int32, "n_cut": pl.Int32, "error": pl.String}
    assert schema["c"] == pl.Struct({"embedding": schema["a"], **counts})
    assert schema["d"] == pl.Float32
    assert {*engines._things} == before


AT_FAULT = ["red", "", None, "one " * 70, POISON, "green"]


def test_a_text_at_fault_is_null_and_fails_no_other(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"text": AT_FAULT})
    found = CONTEXTS["streaming"](frame, embed("text", tiny_engine, on_error="null", as_struct=True))
    told = found.struct.unnest()
    check_same(told["embedding"], expected(tiny_engine, ["red", None, None, None, None, "green"]))
    assert told["n_tokens"].to_list() == [3, None, None, None, None, 3]
    assert told["n_cut"].to_list() == [0, None, None, None, None, 0]
    assert told["error"].to_list() == [
        None,
        "the text is empty",
        None,
        "the text has 72 tokens; the limit is 64",
        "the model failed on the text: its vector is not finite",
        None,
    ]
    assert found.is_null().to_list() == [False, False, True, False, False, False]
    alone = frame.select(embed("text", tiny_engine, on_error="null"))["text"]
    assert alone.is_null().to_list() == [False, True, True, True, True, False]


def test_a_column_of_nothing_but_faults_is_null(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"text": ["", POISON, ""]})
    assert frame.select(embed("text", tiny_engine, on_error="null"))["text"].to_list() == [None] * 3


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        (["red", None, "", ""], InputError, "column 'text', row 2 of 4 given together: the text is empty"),
        (["red", "one " * 70], InputError, r"row 1 of 2 given together \('one one .*…'\): the text has 72 tokens; the"),
        (
            [None, "red", POISON],
            ModelError,
            r"row 2 of 3 given together \('poison'\): the model failed on the text: its",
        ),
    ],
)
def test_an_error_names_column_row_and_reason(
    tiny_engine: EmbeddingEngine, texts: list[str | None], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        pl.DataFrame({"text": texts}).select(embed("text", tiny_engine))


def test_an_error_in_a_list_names_row_and_item(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"lists": [["red"], None, [], ["green", ""]]})
    with pytest.raises(InputError, match="column 'lists', row 3 of 4 given together, item 1: the text is empty"):
        frame.select(embed("lists", tiny_engine))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float8"}, InputError, "dtype is 'float8'; it must be one of float32,"),
        ({"dimensions": 33}, InputError, "dimensions is 33; this model gives 1 to 32"),
        ({"on_error": "skip"}, InputError, "on_error is 'skip'; it must be 'raise' or 'null'"),
        ({"dimension": 3}, InputError, "embed has no option of that name: .*'dimension'"),
        ({"template": "{a"}, InputError, "template is '{a'; its braces are not paired"),
        ({"template": "a"}, InputError, "template is 'a'; it names no field"),
        ({"as_struct": "no"}, InvalidOption, "as_struct is 'no'; it must be True or False"),
        ({"template": "{a!r}"}, InputError, "it may have only names of fields"),
    ],
)
def test_options_that_are_wrong_are_refused_before_anything_runs(
    tiny_path: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        embed("text", tiny_path, **options)


def test_models_that_give_no_vectors_are_refused_before_anything_runs(tiny: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        embed("text", tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        embed("text", tmp_path / "empty.gguf")
    with pytest.raises(InputError, match="is a reranker"):
        embed("text", tiny("bert-reranker"))
    with pytest.raises(ConfigError, match="model is 3; it must be the path of a GGUF file"):
        embed("text", 3)
    with pytest.raises(ConfigError, match=r"'http://a:1', which is no file: a server is given as remote\('http://a:1'"):
        embed("text", "http://a:1")


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("n", {}, "column 'n' is int64, which is no text"),
        ("s", {}, "column 's' is struct<.*>: say with template="),
        ("s", {"template": "{c}"}, "template '{c}' has the field 'c'; column 's' has a, b"),
        ("s", {"template": "{b}"}, "field 'b' of column 's' is large_list<.*>, which cannot be written"),
        ("text", {"template": "{c}"}, "column 'text' is large_string; a template is for structs"),
        ("text", {"prompt": "no", "on_error": "null"}, "prompt 'no' is not one of this model's: query, document"),
    ],
)
def test_columns_that_have_no_texts_are_refused(
    tiny_engine: EmbeddingEngine, column: str, options: dict[str, Any], message: str
) -> None:
    frame = pl.DataFrame({"n": [1], "s": [{"a": "red", "b": [1]}], "text": ["red"]})
    with pytest.raises(InputError, match=message):
        frame.select(embed(column, tiny_engine, **options))


def test_several_columns_at_once(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"a": ["red", "green"], "b": ["blue", None]})
    for columns in (pl.col("a", "b"), pl.all(), pl.col(pl.String)):
        found = frame.select(columns.embellama.embed(tiny_engine))  # type: ignore[attr-defined]
        check_same(found["a"], expected(tiny_engine, ["red", "green"]))
        check_same(found["b"], expected(tiny_engine, ["blue", None]))


def test_lists_that_cannot_be_told_from_texts_are_refused(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"a": [["red"]], "b": [["blue"]], "s": [[{"a": "red"}]]})
    with pytest.raises(
        InputError, match=r"column 'a' is large_list<.*>; of several columns at once none may have lists"
    ):
        frame.select(pl.col("a", "b").embellama.embed(tiny_engine))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"column 's' is large_list<.*>; a template is for structs"):
        frame.select(embed("s", tiny_engine, template="{a}"))


@pytest.mark.parametrize("context", ["select", "streaming"])
def test_arrays_of_texts_become_lists_of_vectors(tiny_engine: EmbeddingEngine, context: str) -> None:
    arrays = pl.Series("text", [["red", "green"], None, ["blue", None]], pl.Array(pl.String, 2)).to_frame()
    found = CONTEXTS[context](arrays, embed("text", tiny_engine))
    assert found.dtype == pl.List(pl.Array(pl.Float32, DIM))
    assert found[1] is None
    check_same(found[0], expected(tiny_engine, ["red", "green"]))
    check_same(found[2], expected(tiny_engine, ["blue", None]))


def test_elements_of_lists(tiny_engine: EmbeddingEngine) -> None:
    element = pl.element().embellama.embed(tiny_engine)  # type: ignore[attr-defined]
    found = pl.DataFrame({"lists": [["red", "green"], []]}).select(pl.col("lists").list.eval(element))["lists"]
    check_same(found[0], expected(tiny_engine, ["red", "green"]))
    assert found[1].to_list() == []


def test_what_is_filtered_out_first_is_not_computed(tiny_path: str, computed: list[int]) -> None:
    frame = pl.LazyFrame({"text": ["red a", "red b", "red c"], "n": [1, 2, 3]})
    found = frame.with_columns(v=embed("text", tiny_path)).filter(pl.col("n") == 2).collect()
    assert found["text"].to_list() == ["red b"]
    assert sum(computed) == 1


def test_an_expression_can_be_pickled(tiny_path: str) -> None:
    expr = pickle.loads(pickle.dumps(embed("text", tiny_path)))
    frame = pl.DataFrame({"text": ["red"]})
    assert frame.select(expr).equals(frame.select(embed("text", tiny_path)))


@given(texts=COLUMNS, context=st.sampled_from([*CONTEXTS]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_are_those_of_the_engine(tiny_engine: EmbeddingEngine, texts: list[str | None], context: str) -> None:
    found = CONTEXTS[context](chunked(texts), pl.col("text").embellama.tokens(tiny_engine))  # type: ignore[attr-defined]
    assert found.dtype == pl.List(pl.Int32)
    if context.startswith("group_by"):  # which takes the lists apart
        found = chunked(texts).select(v=pl.col("text").embellama.tokens(tiny_engine))["v"]  # type: ignore[attr-defined]
    given = [text for text in texts if text]
    ids = iter(tiny_engine.tokenize(None, given).tokens)
    assert found.to_list() == [next(ids).tolist() if text else None for text in texts]


def test_tokens_of_a_text_that_is_too_long_are_an_error_null_or_cut(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"text": ["red", "one " * 70]})
    tokens = pl.col("text").embellama.tokens  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"column 'text', row 1 of 2 .*: the text has 72 tokens; the limit is 64"):
        frame.select(tokens(tiny_engine))
    assert frame.select(tokens(tiny_engine, on_error="null").list.len())["text"].to_list() == [3, None]
    assert frame.select(tokens(tiny_engine, truncate="end").list.len())["text"].to_list() == [3, 64]


NUMBERS = st.floats(-4, 4, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
VECTORS = st.lists(st.none() | st.lists(NUMBERS, min_size=3, max_size=3), max_size=10)


def similar(a: list[float] | None, b: list[float] | None, measure: str) -> float | None:
    if a is None or b is None:
        return None
    x, y = np.array(a), np.array(b)
    return float(x @ y if measure == "dot" else cosine(x, y))


@pytest.mark.parametrize("measure", ["dot", "cosine"])
@pytest.mark.parametrize("context", CONTEXTS)
@given(vectors=VECTORS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_vectors_are_compared_in_each_context(measure: str, context: str, vectors: list[list[float] | None]) -> None:
    frame = pl.DataFrame({"v": pl.Series(vectors, dtype=pl.Array(pl.Float32, 3))})
    frame = frame.with_columns(w=pl.col("v").reverse(), group=pl.int_range(pl.len()) // 4)
    compare = getattr(pl.col("v").embellama, measure)  # type: ignore[attr-defined]
    one = [0.5, -1.0, 2.0]
    for other, rows in ((one, [one] * len(vectors)), ("w", vectors[::-1]), (pl.col("w"), vectors[::-1])):
        found = CONTEXTS[context](frame, compare(other))
        assert found.dtype == pl.Float32
        want = [similar(a, b, measure) for a, b in zip(vectors, rows, strict=True)]
        for each, score in zip(found.to_list(), want, strict=True):
            assert each == score if score is None else math.isclose(each, score, rel_tol=1e-4, abs_tol=1e-5)


def test_a_vector_may_be_of_any_numbers_and_the_other_one_a_literal() -> None:
    frame = pl.DataFrame({"v": [[1, 0], [0, 2], None]})
    for dtype in (pl.Array(pl.Int8, 2), pl.Array(pl.Float64, 2), pl.List(pl.Float32)):
        column = pl.col("v").cast(dtype)
        first = frame.select(column.embellama.cosine(column.first()))["v"]  # type: ignore[attr-defined]
        assert first.to_list() == [1, 0, None]
        given = frame.select(column.embellama.dot(np.array([3, 4])))["v"]  # type: ignore[attr-defined]
        assert given.to_list() == [3, 8, None]


@pytest.mark.parametrize(
    ("column", "other", "message"),
    [
        ("v", [1.0, 2.0, 3.0], "column 'v' has vectors of 2 numbers, and the vector it is compared with has 3"),
        ("v", [[1.0, 2.0], [1.0, 2.0]], "other has 2 vectors; it must be one, or an expression"),
        ("v", ["red"], "other are <U3 of shape"),
        ("v", "three", "column 'v' has vectors of 2 numbers, and column 'three' has 3"),
        ("text", [1.0], "column 'text' is large_string, not vectors: embed it first"),
        ("bits", [1.0, 1.0], "column 'bits' has vectors of uint8; they can be of float64,"),
        ("ragged", [1.0], "column 'ragged' has vectors of 1 numbers and of 2"),
        ("holes", [1.0, 1.0], "column 'holes' has a vector with 1 of its numbers null"),
    ],
)
def test_what_cannot_be_compared_is_refused(column: str, other: Any, message: str) -> None:
    frame = pl.DataFrame(
        {
            "v": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Float32, 2)),
            "three": pl.Series([[1, 2, 3]] * 2, dtype=pl.Array(pl.Float32, 3)),
            "bits": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.UInt8, 2)),
            "text": ["a", "b"],
            "ragged": [[1.0], [1.0, 2.0]],
            "holes": pl.Series([[1, None], [3, 4]], dtype=pl.Array(pl.Float32, 2)),
        }
    )
    with pytest.raises(InputError, match=message):
        frame.select(pl.col(column).embellama.cosine(other))  # type: ignore[attr-defined]


@given(vectors=VECTORS, queries=st.lists(st.lists(NUMBERS, min_size=3, max_size=3).filter(any), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_top_k_finds_what_comparing_all_finds(vectors: list[list[float] | None], queries: list[list[float]]) -> None:
    vectors = [None if vector is None or not any(vector) else vector for vector in vectors]
    frame = pl.DataFrame({"v": pl.Series(vectors, dtype=pl.Array(pl.Float32, 3))})
    best = pl.col("v").embellama.top_k(queries, 2)  # type: ignore[attr-defined]
    for found in (frame.select(best)["v"], streaming(frame, best)):
        assert found.dtype == pl.List(pl.Struct({"row": pl.UInt32, "score": pl.Float32}))
        assert len(found) == len(queries)
        for query, matches in zip(queries, found.to_list(), strict=True):
            scores = {i: float(cosine(np.array(vector), np.array(query))) for i, vector in enumerate(vectors) if vector}
            assert [match["score"] for match in matches] == pytest.approx(
                sorted(scores.values(), reverse=True)[:2], abs=1e-5
            )
            assert all(scores[match["row"]] == pytest.approx(match["score"], abs=1e-5) for match in matches)


def test_top_k_embeds_queries_that_are_texts(tiny_engine: EmbeddingEngine) -> None:
    frame = pl.DataFrame({"text": ["red", None, "green"]}).with_columns(v=embed("text", tiny_engine, dimensions=8))
    best = pl.col("v").embellama.top_k  # type: ignore[attr-defined]
    found = frame.select(best(["green", "red"], 1, model=tiny_engine))["v"].to_list()
    assert [matches[0]["row"] for matches in found] == [2, 0]
    assert frame.head(0).select(best("green", 1, model=tiny_engine))["v"].to_list() == [[]]
    columns: list[Any] = [pl.Series(["green", "red"]), np.array(["green", "red"]), ("green", "red")]
    for queries in (*columns, columns[0].to_arrow()):
        assert frame.select(best(queries, 1, model=tiny_engine))["v"].to_list() == found
    with pytest.raises(InvalidOption, match="queries has None at position 1, which is no text"):
        best(["green", None], 1, model=tiny_engine)
    with pytest.raises(InvalidOption, match="model is missing: queries are texts"):
        best(["green"], 1)
    with pytest.raises(InvalidOption, match="queries are none"):
        best([], 1, model=tiny_engine)
    with pytest.raises(InputError, match="top_k is 0; it must be at least 1"):
        frame.select(best("green", 0, model=tiny_engine))


@pytest.mark.parametrize("context", CONTEXTS)
def test_classify_gives_label_score_and_margin(tiny_engine: EmbeddingEngine, context: str) -> None:
    texts = ["red", None, "green", "blue", "red"]
    frame = chunked(texts).with_columns(v=embed("text", tiny_engine))
    found = CONTEXTS[context](frame, pl.col("v").embellama.classify(["green", "red", "blue"], tiny_engine))  # type: ignore[attr-defined]
    assert found.dtype == pl.Struct({"label": pl.String, "score": pl.Float32, "margin": pl.Float32})
    assert found.is_null().to_list() == [text is None for text in texts]
    assert [each["label"] for each in found.to_list() if each] == ["red", "green", "blue", "red"]
    assert all(each["score"] > 0.999 and each["margin"] > 0 for each in found.to_list() if each)
    with pytest.raises(InvalidOption, match="labels has 1"):
        pl.col("v").embellama.classify(["green"], tiny_engine)  # type: ignore[attr-defined]


@given(texts=COLUMNS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_near_duplicates_names_the_earlier_row(tiny_engine: EmbeddingEngine, texts: list[str | None]) -> None:
    frame = chunked(texts).with_columns(v=embed("text", tiny_engine))
    found = embellama.polars.near_duplicates(frame.lazy(), "v", threshold=0.9999)
    assert found.schema == {"index": pl.UInt32, "duplicate_of": pl.UInt32, "score": pl.Float32}
    again = [i for i, text in enumerate(texts) if text and text in texts[:i]]
    assert {*again} <= {*found["index"]}
    assert not {*found["index"]} & {*found["duplicate_of"]}
    assert all(texts[i] is not None for i in found["index"])
    with pytest.raises(InputError, match="threshold is 0; it must be above 0 and at most 1"):
        embellama.polars.near_duplicates(frame, "v", threshold=0)
    with pytest.raises(InputError, match="threshold is 'high'; it must be above 0 and at most 1"):
        embellama.polars.near_duplicates(frame, "v", threshold="high")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="frame is Series; it must be a DataFrame or a LazyFrame"):
        embellama.polars.near_duplicates(frame["v"], "v", threshold=1)  # type: ignore[arg-type]
