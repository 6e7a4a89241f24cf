"""Vectors scaled, cut and written as fewer bytes."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embellama import ConfigError, EmbeddingFailed, InputError
from embellama.outputs import Dtype, calibrate, check_dtype, check_normalization, cut, normalize, quantize
from tests.conftest import TinyModel
from tests.forward import pooled
from tests.forward.model import Model
from tests.known import PIECES, TEXT, Array, assert_alike, engine_of, unit

Rows = NDArray[np.float32]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
MODES = ("l2", "none", "max-abs", "l1", "l3", "l999")

# Three rows, and what sentence-transformers 6.2.0 says of them: quantize_embeddings(ROWS, precision), for int8 with
# ranges=[[-1] * 12, [1] * 12].
ROWS = np.array(
    [
        [0.3, -0.1, 0.0, 0.2, -0.4, 0.1, 0.05, -0.05, 0.5, -0.6, 0.25, 0.01],
        [-0.3, 0.3, 0.1, -0.2, 0.15, -0.45, 0.6, 0.35, -0.01, 0.02, -0.2, 0.1],
        [0.9, 0.05, -0.05, 0.1, 0.2, -0.3, 0.0, -0.1, 0.15, 0.1, -0.05, 0.0],
    ],
    np.float32,
)
THEIR_BINARY = [[22, 48], [-21, -48], [88, 64]]
THEIR_UBINARY = [[150, 176], [107, 80], [216, 192]]
THEIR_INT8 = [
    [37, -14, -1, 25, -52, 12, 5, -7, 63, -78, 31, 0],
    [-39, 37, 12, -27, 18, -58, 75, 44, -2, 2, -27, 12],
    [114, 5, -7, 12, 25, -39, -1, -14, 18, 12, -7, -1],
]


def row(*values: float) -> Rows:
    return np.array([values], np.float32)


# Nearly all float32 can hold; no row of zeros.
some_rows: st.SearchStrategy[Rows] = arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 20)), elements=st.floats(-(2.0**126), 2.0**126, width=32)
).filter(lambda rows: bool(rows.any(axis=1).all()))
unit_rows = some_rows.map(normalize)


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        ("l2", (3, -4), (0.6, -0.8)),
        ("l1", (3, -1), (0.75, -0.25)),
        ("l3", (3, 4, -5), (3 / 6, 4 / 6, -5 / 6)),  # 27 + 64 + 125 = 216
        ("max-abs", (1, -4), (8190, -32760)),
        ("none", (3, -4), (3, -4)),
    ],
)
def test_normalize_gives_what_can_be_worked_out_by_hand(
    mode: str, given: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    got = normalize(row(*given), mode)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, row(*expected), rtol=1e-6)


@given(rows=some_rows, mode=st.sampled_from(MODES))
def test_what_normalize_gives_has_the_norm_asked_for(rows: Rows, mode: str) -> None:
    got = np.abs(normalize(rows, mode).astype(np.float64))
    assert np.isfinite(got).all()
    if mode == "max-abs":
        np.testing.assert_allclose(got.max(axis=1), 32760, rtol=1e-6)
    elif mode != "none":
        p = int(mode[1:])
        np.testing.assert_allclose((got**p).sum(axis=1), 1, rtol=1e-6 * p)


@pytest.mark.parametrize("mode", ["", "l", "l0", "l-1", "l2.5", "L2", "l1000", "l2\n", "euclidean", "2"])
def test_a_normalization_there_is_none_of_is_named(mode: str) -> None:
    with pytest.raises(ConfigError, match="it must be l2, none, max-abs") as caught:
        check_normalization(mode)
    assert repr(mode) in str(caught.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("bad", "reason"),
    [(0.0, "its vector is all zeros"), (np.nan, "its vector is not finite"), (-np.inf, "its vector is not finite")],
)
def test_a_row_that_is_no_vector_is_named(mode: str, bad: float, reason: str) -> None:
    rows = np.array([[1, 2], [0, bad], [np.nan, 1]], np.float32)
    with pytest.raises(EmbeddingFailed) as caught:
        normalize(rows, mode)
    assert (caught.value.index, caught.value.reason) == (1, reason)


def test_cut_keeps_the_first_numbers_and_scales_them_again() -> None:
    rows = np.array([[0.3, 0.4, 0.866], [0.6, 0.8, 0]], np.float32)
    np.testing.assert_allclose(cut(rows, 2), [[0.6, 0.8]] * 2, rtol=1e-6)
    np.testing.assert_allclose(cut(rows, 2, "l1"), [[3 / 7, 4 / 7]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(cut(rows, 2, "none"), rows[:, :2])
    assert cut(rows, None) is rows
    assert cut(rows, 3) is rows


@pytest.mark.parametrize("dimensions", [0, -1, 4])
def test_cut_names_dimensions_that_are_out_of_range(dimensions: int) -> None:
    with pytest.raises(InputError, match=f"dimensions is {dimensions}; this model gives 1 to 3"):
        cut(row(1, 2, 3), dimensions)


def test_cut_names_a_row_of_which_nothing_is_left() -> None:
    with pytest.raises(EmbeddingFailed, match="text 1: cut to 2 dimensions, its vector is all zeros"):
        cut(np.array([[1, 0, 0], [0, 0, 1]], np.float32), 2)


@given(rows=some_rows, data=st.data())
def test_cut_rows_have_unit_length(rows: Rows, data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, rows.shape[1]))
    rows[:, 0] = 1  # so that something is left
    got = cut(normalize(rows), dimensions)
    assert got.shape == (len(rows), dimensions)
    np.testing.assert_allclose(np.linalg.norm(got.astype(np.float64), axis=1), 1, atol=1e-6)


def test_quantize_gives_what_can_be_worked_out_by_hand() -> None:
    rows = row(1, -1, 0, 0.5, -0.004, 0.0039, 2, -2)
    assert quantize(rows, "int8").tolist() == [[127, -127, 0, 64, -1, 0, 127, -127]]
    assert quantize(rows, "uint8").tolist() == [[255, 1, 128, 192, 127, 128, 255, 1]]
    assert quantize(rows, "int8", limit=2).tolist() == [[64, -64, 0, 32, 0, 0, 127, -127]]
    assert quantize(rows, "ubinary").tolist() == [[0b10010110]]
    assert quantize(rows, "binary").tolist() == [[0b10010110 - 128]]
    assert quantize(rows, "float32") is rows
    assert quantize(row(1 / 3), "float16").tolist() == [[0.333251953125]]


def test_bits_are_those_of_voyages_documented_example() -> None:
    # Eight signs, 0 1 0 0 1 1 0 1, are 77 as ubinary (docs.voyageai.com, "Flexible Dimensions and Quantization").
    rows = row(-0.04, 0.006, -0.07, -0.04, 0.005, 0.0003, -0.08, 0.04)
    assert quantize(rows, "ubinary").tolist() == [[77]]
    assert quantize(rows, "binary").tolist() == [[-51]]


def test_bits_are_those_of_sentence_transformers() -> None:
    assert quantize(ROWS, "binary").tolist() == THEIR_BINARY
    assert quantize(ROWS, "ubinary").tolist() == THEIR_UBINARY


def test_int8_is_within_two_levels_of_sentence_transformers() -> None:
    # It rounds down over 256 levels from -128; ours are symmetric and rounded to the nearest.
    assert np.abs(quantize(ROWS, "int8").astype(int) - THEIR_INT8).max() <= 2


@pytest.mark.parametrize("n", [1, 7, 8, 9, 384])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_gives_the_shape_and_dtype_it_says(dtype: Dtype, n: int) -> None:
    expected = {"binary": np.int8, "ubinary": np.uint8}.get(dtype) or np.dtype(dtype)
    for rows in (np.ones((2, n), np.float32), np.ones((0, n), np.float32)):
        got = quantize(rows, dtype)
        assert got.dtype == expected
        assert got.shape == (len(rows), -(-n // 8) if "binary" in dtype else n)


@given(rows=unit_rows, dtype=st.sampled_from(DTYPES), limit=st.floats(0.01, 1))
def test_a_row_becomes_the_same_whatever_its_batch(rows: Rows, dtype: Dtype, limit: float) -> None:
    together = quantize(rows, dtype, limit)
    alone = np.concatenate([quantize(rows[i : i + 1], dtype, limit) for i in range(len(rows))])
    np.testing.assert_array_equal(together, alone)


@given(rows=unit_rows, limit=st.floats(0.01, 1))
def test_int8_is_within_half_a_level_of_what_it_stands_for(rows: Rows, limit: float) -> None:
    got = quantize(rows, "int8", limit) * (limit / 127)
    assert np.abs(got - rows.clip(-limit, limit)).max() <= limit / 254 + 1e-7


@given(rows=unit_rows, dtype=st.sampled_from(["float16", "int8", "uint8"]), limit=st.floats(0.01, 1))
def test_quantize_keeps_the_order_of_the_numbers(rows: Rows, dtype: Dtype, limit: float) -> None:
    order = np.argsort(rows, axis=1)
    got = np.take_along_axis(quantize(rows, dtype, limit).astype(np.float64), order, axis=1)
    assert (np.diff(got, axis=1) >= 0).all()


@given(rows=unit_rows, limit=st.floats(0.01, 1))
def test_int8_of_the_opposite_vector_is_the_opposite(rows: Rows, limit: float) -> None:
    np.testing.assert_array_equal(quantize(-rows, "int8", limit), -quantize(rows, "int8", limit))
    levels = quantize(rows, "uint8", limit).astype(int)
    np.testing.assert_array_equal(levels - 128, quantize(rows, "int8", limit))


@given(rows=unit_rows)
def test_signs_come_back_from_the_bits(rows: Rows) -> None:
    bits = np.unpackbits(quantize(rows, "ubinary"), axis=1, count=rows.shape[1])
    np.testing.assert_array_equal(bits == 1, rows > 0)
    signed = quantize(rows, "binary").astype(int)
    np.testing.assert_array_equal(signed + 128, quantize(rows, "ubinary"))


@given(rows=some_rows, mode=st.sampled_from(MODES), dtype=st.sampled_from(DTYPES))
def test_no_number_that_is_none_comes_out(rows: Rows, mode: str, dtype: Dtype) -> None:
    rows = normalize(rows, mode)
    if dtype == "float16" and np.abs(rows).max() > 65504:
        return
    assert np.isfinite(quantize(rows, dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0])
def test_quantize_refuses_a_row_that_is_no_vector(dtype: Dtype, bad: float) -> None:
    with pytest.raises(EmbeddingFailed, match="text 1"):
        quantize(np.array([[1, 0], [0, bad]], np.float32), dtype)


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(EmbeddingFailed, match="text 1: its vector is too large for float16"):
        quantize(np.array([[65504, 1], [70000, 1]], np.float32), "float16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int4",), "dtype is 'int4'; it must be one of float32, float16, int8, uint8, binary, ubinary"),
        (("int8", "l2", 0.0), "the limit of int8 is 0.0; it must be a number above 0"),
        (("int8", "l2", np.nan), "the limit of int8 is nan"),
        (("uint8", "max-abs"), "dtype is uint8, which holds -1 to 1; vectors with normalization max-abs"),
        (("int8", "none"), "dtype is int8, which holds -1 to 1; vectors with normalization none need another limit"),
    ],
)
def test_a_dtype_that_cannot_be_had_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_dtype(*arguments)
    assert str(caught.value).startswith(message)


def test_dtypes_that_can_be_had_pass() -> None:
    for mode in MODES:
        for dtype in DTYPES:
            check_dtype(dtype, mode, limit=3.5)
    check_dtype("int8", "l3")
    check_dtype("binary", "none")


def test_calibrate_finds_the_largest_value() -> None:
    limit = calibrate(np.array([[0.1, -0.25], [0.2, 0.0]], np.float32))
    assert limit == 0.25
    assert quantize(row(0.25, -0.125, 0.9), "int8", limit).tolist() == [[127, -64, 127]]
    with pytest.raises(InputError, match="no rows"):
        calibrate(np.empty((0, 2), np.float32))
    with pytest.raises(EmbeddingFailed, match="text 0"):
        calibrate(row(np.nan, 1))


@given(rows=unit_rows)
def test_a_calibrated_limit_clips_nothing_it_was_made_from(rows: Rows) -> None:
    limit = calibrate(rows)
    assert 0 < limit <= 1.000001
    assert np.abs(quantize(rows, "int8", limit) * (limit / 127) - rows).max() <= limit / 254 + 1e-7


# Through the engine


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
