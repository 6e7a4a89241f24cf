"""Near-duplicates are those that a plain greedy loop finds."""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embellama.errors import InvalidOption
from embellama.vectors.block import blocks_of
from embellama.vectors.cosine import exact
from embellama.vectors.duplicates import near_duplicates
from embellama.vectors.kept import KeptRows, ReadAgain, SpilledRows

# Few directions, so that many rows are equally near.
ROWS = st.lists(st.tuples(*[st.integers(-1, 1)] * 3).filter(any), min_size=1, max_size=40)
KINDS: dict[str, Callable[[NDArray[np.float32], int], KeptRows]] = {
    "spilled": lambda rows, n_rows: SpilledRows(rows.shape[1], n_rows=n_rows),
    "read again": lambda rows, n_rows: ReadAgain(lambda places: rows[places], rows.shape[1], n_rows=n_rows),
}


def naive(rows: NDArray[np.float32], threshold: float) -> list[tuple[int, int, float]]:
    kept: list[int] = []
    found = []
    for i, row in enumerate(rows):
        scores = exact(rows[kept], row) if kept else np.empty(0)
        if len(scores) and scores.max() >= np.float32(threshold):
            found.append((i, kept[int(scores.argmax())], float(scores.max())))
        else:
            kept.append(i)
    return found


def found_in(rows: NDArray[np.float32], threshold: float, n_rows: int, kind: str) -> list[tuple[int, int, float]]:
    with contextlib.closing(KINDS[kind](rows, n_rows)) as kept:
        return [
            (int(found.block.indices[position]), int(of), float(score))
            for found in near_duplicates(blocks_of(rows, n_rows=n_rows), threshold, kept)
            for position, of, score in zip(found.positions, found.of, found.scores, strict=True)
        ]


@pytest.mark.parametrize("kind", KINDS)
# The last row is equally near to two: of other blocks, then of one and of its own.
@example(rows=[(1, 0, 0), (0, 1, 0), (1, 1, 0)], threshold=0.7, n_rows=1)
@example(rows=[(1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 0)], threshold=0.7, n_rows=2)
@given(rows=ROWS, threshold=st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0]), n_rows=st.integers(1, 12))
def test_near_duplicates_are_those_of_a_plain_loop(
    kind: str, rows: list[tuple[int, ...]], threshold: float, n_rows: int
) -> None:
    matrix = np.array(rows, np.float32)
    assert found_in(matrix, threshold, n_rows, kind) == naive(matrix, threshold)


@pytest.mark.parametrize("n_rows", [1, 90, 1000])
def test_equal_rows_have_the_cosine_1_whatever_their_length(n_rows: int) -> None:
    choose = np.random.default_rng(0)
    different = choose.standard_normal((100, 384)).astype(np.float32)
    rows = np.concatenate([different, 3 * different, different / 7])
    found = found_in(rows, 1.0, n_rows, "spilled")
    assert found == [(i, i % 100, 1.0) for i in range(100, 300)]


def test_a_chain_is_cut_where_its_first_row_is_no_longer_near() -> None:
    # Each is near the one before it; 2 is not near 0, so it is kept, and 3 is its duplicate.
    angles = np.deg2rad([0, 20, 40, 60])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = found_in(rows, 0.9, 2, "read again")
    assert [(index, of) for index, of, _ in found] == [(1, 0), (3, 2)]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_named(threshold: float) -> None:
    with pytest.raises(InvalidOption, match=f"threshold is {threshold}; it must be above 0 and at most 1"):
        near_duplicates([], threshold, ReadAgain(lambda places: places, 2))
