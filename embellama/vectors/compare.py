"""Compare two sets of vectors of the same rows: how far each row's vector is from the other's.

blocks of A ──┐
              ├─ rows of the same index ──► their cosine ──► mean, least, percentiles, the worst rows
blocks of B ──┘
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from embellama.errors import InputError, check_number
from embellama.vectors.block import Block, Floats, Numbers
from embellama.vectors.cosine import exact

# Of the rows' cosines: so many percent of rows have one at most as high.
PERCENTILES = (1, 5, 25, 50)


class ComparedRow(msgspec.Struct, frozen=True):
    """A row that is in both.

    Attributes:
        index: Its index.
        id: Its id in A.
        cosine: That of its two vectors.
    """

    index: int
    id: Any
    cosine: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How alike two sets of vectors are.

    Attributes:
        rows: Rows that are in both.
        mean: The mean of their cosines.
        least: The least of them.
        percentiles: For each of `PERCENTILES`, the cosine that so many percent of the rows do not exceed.
        worst: The rows with the least cosines, the worst first.
        only_in_a: Rows that have a vector only in A.
        only_in_b: The same for B.
    """

    rows: int
    mean: float
    least: float
    percentiles: dict[str, float]
    worst: list[ComparedRow]
    only_in_a: int
    only_in_b: int


class _Pairs(NamedTuple):
    """Rows that are in both, ``n`` of them: their indices, ids in A, and cosines."""

    indices: Numbers
    ids: list[Any]
    cosines: Floats


def compare(a: Iterable[Block], b: Iterable[Block], n_worst: int = 10) -> Comparison:
    """Compare rows of the same index. 4 bytes are held for each row, and a block of each.

    Args:
        a: Rows, their indices increasing.
        b: The same.
        n_worst: How many of the worst rows to name, at least 0.

    Raises:
        InvalidOption: `n_worst` is below 0.
        InputError: The vectors differ in length, rows are not in order, have other ids, or none is in both.
    """
    check_number("worst", n_worst, "it must be at least 0", 0)
    side_a, side_b = _Side(a), _Side(b)
    cosines: list[Floats] = []
    worst: list[ComparedRow] = []
    for pairs in _pairs(side_a, side_b):
        cosines.append(pairs.cosines)
        for i in np.lexsort((pairs.indices, pairs.cosines))[:n_worst]:
            worst.append(ComparedRow(int(pairs.indices[i]), pairs.ids[i], _rounded(pairs.cosines[i])))
        worst = sorted(worst, key=lambda row: (row.cosine, row.index))[:n_worst]
    if not cosines:
        raise InputError(f"no row is in both: {side_a.n_rows} are in the one and {side_b.n_rows} others in the other")
    all_cosines = np.concatenate(cosines)
    found = np.percentile(all_cosines, PERCENTILES)
    return Comparison(
        rows=len(all_cosines),
        mean=_rounded(all_cosines.mean(dtype=np.float64)),
        least=_rounded(all_cosines.min()),
        percentiles={str(p): _rounded(value) for p, value in zip(PERCENTILES, found, strict=True)},
        worst=worst,
        only_in_a=side_a.n_rows - len(all_cosines),
        only_in_b=side_b.n_rows - len(all_cosines),
    )


class _Side:
    """The rows of one side, of which a block is held.

    Attributes:
        block: The block; None at the end.
        n_rows: Rows read.
    """

    def __init__(self, blocks: Iterable[Block]):
        self._blocks = iter(blocks)
        self.block: Block | None = None
        self.n_rows = 0
        self._last = -1

    def fill(self) -> bool:
        """Read the next block if none is held; return whether one is now."""
        if self.block is None and (block := next(self._blocks, None)):
            ordered = np.concatenate([[self._last], block.indices])
            if len(wrong := np.flatnonzero(ordered[1:] <= ordered[:-1])):
                index, before = ordered[wrong[0] + 1], ordered[wrong[0]]
                raise InputError(f"rows must be in the order of their index: row {index} comes after row {before}")
            self.block, self._last = block, int(block.indices[-1])
            self.n_rows += len(block.indices)
        return self.block is not None

    def take(self, last: int) -> Block:
        """Take the rows up to an index from what is held."""
        assert self.block
        n = int(np.searchsorted(self.block.indices, last, "right"))
        taken, left = self.block.part(0, n), self.block.part(n, len(self.block.indices))
        self.block = left if len(left.indices) else None
        return taken


def _pairs(a: _Side, b: _Side) -> Iterator[_Pairs]:
    while a.fill() and b.fill():
        assert a.block
        assert b.block
        dims = a.block.rows.shape[1], b.block.rows.shape[1]
        if dims[0] != dims[1]:
            raise InputError(f"vectors of {dims[0]} dimensions cannot be compared with vectors of {dims[1]}")
        last = int(min(a.block.indices[-1], b.block.indices[-1]))
        mine, theirs = a.take(last), b.take(last)
        _, in_a, in_b = np.intersect1d(mine.indices, theirs.indices, assume_unique=True, return_indices=True)
        for i, j in zip(in_a, in_b, strict=True):
            one, other = mine.ids[i], theirs.ids[j]
            if one is not None and other is not None and _text(one) != _text(other):
                raise InputError(
                    f"row {mine.indices[i]} is {one!r} in the one and {other!r} in the other: other inputs"
                )
        if len(in_a):
            cosines = exact(mine.rows[in_a], theirs.rows[in_b])
            yield _Pairs(mine.indices[in_a], [mine.ids[i] for i in in_a], cosines)
    for side in (a, b):  # what is left is counted
        side.block = None
        while side.fill():
            side.block = None


def _text(id: Any) -> str:
    """Write an id as tables have it: as a text, or as JSON."""
    return id if isinstance(id, str) else msgspec.json.encode(id).decode()


def _rounded(value: Any) -> float:
    return round(float(value), 6)
