"""The best rows are found, whatever blocks they come in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama.errors import InputError, InvalidOption
from embellama.vectors.block import blocks_of
from embellama.vectors.cosine import exact
from embellama.vectors.search import top_k

# Few different numbers, so that many rows are equally good.
ROWS = st.lists(st.tuples(*[st.integers(-2, 2)] * 3).filter(any), min_size=1, max_size=40)


@given(ROWS, ROWS, st.integers(1, 12), st.integers(1, 50))
def test_top_k_is_that_of_a_plain_loop(
    rows: list[tuple[int, ...]], queries: list[tuple[int, ...]], n_rows: int, k: int
) -> None:
    matrix, asked = np.array(rows, np.float32), np.array(queries, np.float32)
    found = top_k(asked, blocks_of(matrix, n_rows=n_rows), k)
    for query, matches in zip(asked, found, strict=True):
        scores = exact(matrix, query)
        best = np.lexsort((np.arange(len(rows)), -scores))[:k]
        assert matches.indices.tolist() == best.tolist()
        assert matches.scores.tolist() == scores[best].tolist()


@pytest.mark.parametrize("n_rows", [1, 33, 500, 1000])
def test_rows_that_hardly_differ_are_told_apart_in_any_block(n_rows: int) -> None:
    choose = np.random.default_rng(0)
    row = choose.standard_normal(384).astype(np.float32)
    rows = np.stack([row] * 1000)
    rows[:, 0] += np.float32(1e-4) * choose.permutation(1000).astype(np.float32)
    scores = exact(rows, row)
    (found,) = top_k(row[None], blocks_of(rows, n_rows=n_rows), 50)
    assert found.indices.tolist() == sorted(range(1000), key=lambda i: (-scores[i], i))[:50]
    np.testing.assert_array_equal(found.scores, scores[found.indices])


def test_lengths_do_not_count_even_where_their_squares_are_no_float32() -> None:
    rows = np.array([[1e30, 0], [1e-30, 1e-30], [0, 2]], np.float32)
    (found,) = top_k(np.array([[0, 1e25]], np.float32), blocks_of(rows), 3)
    assert found.indices.tolist() == [2, 1, 0]
    np.testing.assert_allclose(found.scores, [1, 0.5**0.5, 0], atol=1e-7)


def test_what_is_no_vector_is_named() -> None:
    with pytest.raises(InputError, match="rows: the vector of row 1 is not finite"):
        list(blocks_of(np.array([[1, 0], [np.nan, 1], [0, 0]], np.float32)))
    with pytest.raises(InputError, match="queries: the vector of row 0 is all zeros"):
        top_k(np.zeros((1, 2)), blocks_of(np.ones((3, 2))), 1)
    with pytest.raises(InputError, match="the queries have 2 dimensions and the rows 3"):
        top_k(np.ones((1, 2)), blocks_of(np.ones((3, 3))), 1)
    with pytest.raises(InvalidOption, match="top_k is 0; it must be at least 1"):
        top_k(np.ones((1, 2)), [], 0)
