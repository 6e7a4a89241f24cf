"""How alike vectors are: cosine, dot product, differing bits, late interaction."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embellama import EmptyInput, InputError
from embellama.outputs import normalize, quantize
from embellama.similarity import cosine, dot, hamming, max_sim, max_sims

Rows = NDArray[np.float32]
Score = Callable[[Rows, Rows], Rows]


def rows_of(*rows: tuple[float, ...]) -> Rows:
    return np.array(rows, np.float32)


A = rows_of((1, 0), (3, 4))
B = rows_of((0, 2), (-1, 0), (6, 8))


def test_dot_and_cosine_give_what_can_be_worked_out_by_hand() -> None:
    assert dot(A, B).tolist() == [[0, -1, 6], [8, -3, 50]]
    np.testing.assert_allclose(cosine(A, B), [[0, -1, 0.6], [0.8, -0.6, 1]], atol=1e-6)
    assert dot(A, B).dtype == cosine(A, B).dtype == np.float32


@pytest.mark.parametrize("score", [dot, cosine])
def test_one_vector_takes_no_axis(score: Score) -> None:
    whole = score(A, B)
    np.testing.assert_array_equal(score(A[1], B), whole[1])
    np.testing.assert_array_equal(score(A, B[2]), whole[:, 2])
    assert score(A[1], B[2]).shape == ()


def test_dot_of_int8_does_not_overflow() -> None:
    ones = np.full((1, 1040), 127, np.int8)
    assert dot(ones, -ones).tolist() == [[-127 * 127 * 1040]]


def test_cosine_of_zeros_is_zero() -> None:
    assert cosine(np.zeros(2, np.float32), B).tolist() == [0, 0, 0]


@given(
    a=arrays(np.float32, (3, 5), elements=st.floats(-(2.0**126), 2.0**126, width=32)),
    b=arrays(np.float32, (2, 5), elements=st.floats(-(2.0**126), 2.0**126, width=32)),
)
def test_cosine_is_from_minus_one_to_one(a: Rows, b: Rows) -> None:
    got = cosine(a, b)
    assert (np.abs(got) <= 1).all()
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    norms = np.outer(np.linalg.norm(a.astype(np.float64), axis=1), np.linalg.norm(b.astype(np.float64), axis=1))
    np.testing.assert_allclose(got, exact / np.where(norms > 0, norms, 1), atol=1e-6)


def test_cosine_with_itself_is_never_above_one() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 384)).astype(np.float32)
    assert 0.999999 < cosine(rows, rows).max() <= 1  # their rounded dot product is


def test_hamming_counts_bits_that_differ() -> None:
    a = np.array([[0b11110000, 0b00000001], [0, 0]], np.uint8)
    b = np.array([[0b11110000, 0b00000000], [0b00001111, 0b00000001], [255, 255]], np.uint8)
    assert hamming(a, b).tolist() == [[1, 8, 11], [4, 5, 16]]
    assert hamming(a[0], b).tolist() == [1, 8, 11]
    assert hamming(a, b[2]).tolist() == [11, 16]
    assert hamming(a[1], b[2]) == 16
    assert hamming(a[:0], b).shape == (0, 3)
    assert hamming(a, b).dtype == hamming(a[:0], b).dtype == np.int64


@given(
    a=arrays(np.float32, (3, 11), elements=st.floats(-1, 1, width=32)),
    b=arrays(np.float32, (2, 11), elements=st.floats(-1, 1, width=32)),
)
def test_hamming_takes_binary_and_ubinary_alike(a: Rows, b: Rows) -> None:
    a[:, 0] = b[:, 0] = 1  # no row of zeros
    expected = ((a > 0)[:, None] != (b > 0)[None]).sum(axis=2)
    packed_a, packed_b = quantize(a, "ubinary"), quantize(b, "ubinary")
    np.testing.assert_array_equal(hamming(packed_a, packed_b), expected)
    np.testing.assert_array_equal(hamming(quantize(a, "binary"), quantize(b, "binary")), expected)
    np.testing.assert_array_equal(hamming(quantize(a, "binary"), packed_b), expected)


def test_max_sim_gives_what_can_be_worked_out_by_hand() -> None:
    query = rows_of((1, 0), (0, 1))
    document = rows_of((0.6, 0.8), (0.8, -0.6), (-1, 0))
    # The first token's best is 0.8, with the second of the document; the second's 0.8, with the first.
    assert max_sim(query, document) == pytest.approx(1.6)
    assert max_sim(document, query) == pytest.approx(0.8 + 0.8 + 0)  # not symmetric


def test_max_sims_scores_documents_of_any_length_in_order() -> None:
    random = np.random.default_rng(0)
    query = normalize(random.normal(size=(5, 8)).astype(np.float32))
    documents = [normalize(random.normal(size=(n, 8)).astype(np.float32)) for n in (1, 7, 3)]
    expected = [sum(max(float(q @ d) for d in document) for q in query) for document in documents]
    got = max_sims(query, [*documents, query])
    np.testing.assert_allclose(got, [*expected, 5], rtol=1e-5)
    assert got.dtype == np.float32
    assert max_sims(query, []).shape == (0,)
    levels = max_sims(quantize(query, "int8"), [quantize(document, "int8") for document in documents])
    np.testing.assert_allclose(levels / 127**2, expected, atol=0.05)


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(InputError, match="a vector of 2 numbers cannot be compared with one of 3"):
        dot(A, np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match="a vector of 1 bytes cannot be compared with one of 2"):
        hamming(np.zeros(1, np.uint8), np.zeros((4, 2), np.uint8))
    with pytest.raises(InputError, match="not float32"):
        hamming(A, A)
    with pytest.raises(EmptyInput, match="text 1 is empty"):
        max_sims(A, [A, A[:0]])
    with pytest.raises(EmptyInput):
        max_sim(A[:0], A)
