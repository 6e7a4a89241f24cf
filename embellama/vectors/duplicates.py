"""Find near-duplicates: rows that are much like an earlier one.

each block ── with every block of kept rows, then in itself, row by row ──► duplicates
                          ▲                                                     │
                          └──────────────── those that are none ◄──────────────╯

A row is a duplicate of the earlier kept row that is most like it, if their cosine is at least the threshold. So what is
kept is never near to anything else that is kept, and each duplicate names a row that is kept. Rows are taken in their
order, and cosines are exact, so the same rows give the same answer whatever blocks they come in. The work grows with
the number of rows times the number of those kept.
"""

from collections.abc import Iterable, Iterator
from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.errors import InvalidOption
from embellama.vectors.block import Block, Floats, Numbers
from embellama.vectors.cosine import exact, margin
from embellama.vectors.kept import KeptRows


class Duplicates(NamedTuple):
    """The near-duplicates among the rows of a block.

    block: The rows.
    positions: Which of them are duplicates, ``(n,) int64``, increasing.
    of: The indices of the kept rows that they are most like, ``(n,) int64``.
    scores: The cosines, ``(n,) float32``.
    """

    block: Block
    positions: Numbers
    of: Numbers
    scores: Floats


class _Nearest(NamedTuple):
    """For each row of a block, the kept row that is most like it so far.

    scores: The cosine, ``(n,) float32``; -inf where none reaches the threshold.
    of: Its index, ``(n,) int64``.
    """

    scores: Floats
    of: Numbers


def near_duplicates(blocks: Iterable[Block], threshold: float, kept: KeptRows) -> Iterator[Duplicates]:
    """Find near-duplicates, block by block.

    Args:
        blocks: The rows, in the order in which earlier ones are kept.
        threshold: The least cosine of a duplicate, above 0 and at most 1.
        kept: Where rows that are no duplicates are kept; it is filled here, and closed by the caller.

    Raises:
        InvalidOption: `threshold` is not in its range.
    """
    if not (isinstance(threshold, Real) and 0 < threshold <= 1):
        raise InvalidOption("threshold", f"is {threshold!r}; it must be above 0 and at most 1")
    return _found(blocks, threshold, kept)


def _found(blocks: Iterable[Block], threshold: float, kept: KeptRows) -> Iterator[Duplicates]:
    indices: list[Numbers] = [np.empty(0, np.int64)]
    for block in blocks:
        unit = block.unit
        nearest = _among_kept(unit, kept, np.concatenate(indices), threshold)
        fresh = _within(unit, block.indices, nearest, threshold)
        kept.add(block, fresh)
        indices = [np.concatenate([*indices, block.indices[fresh]])]
        positions = np.flatnonzero(~fresh)
        yield Duplicates(block, positions, nearest.of[positions], nearest.scores[positions])


def _among_kept(unit: Floats, kept: KeptRows, indices: Numbers, threshold: float) -> _Nearest:
    """Compare rows with all that were kept before them, whose indices are `indices`."""
    nearest = _Nearest(np.full(len(unit), -np.inf, np.float32), np.full(len(unit), -1, np.int64))
    spare = margin(unit.shape[1])
    start = 0
    for others in kept.units():
        near = unit @ others.T
        most = near.max(axis=1)
        # Only what may be a row's best: near its best here, and not below its best so far.
        hit = np.flatnonzero(most >= np.maximum(nearest.scores, np.float32(threshold)) - spare)
        rows, columns = np.nonzero(near[hit] >= most[hit, None] - 2 * spare)
        rows = hit[rows]
        scores = exact(unit[rows], others[columns])
        order = np.lexsort((columns, -scores, rows))
        rows, first = np.unique(rows[order], return_index=True)
        columns, scores = columns[order][first], scores[order][first]
        better = (scores >= np.float32(threshold)) & (scores > nearest.scores[rows])
        nearest.scores[rows[better]] = scores[better]
        nearest.of[rows[better]] = indices[start + columns[better]]
        start += len(others)
    return nearest


def _within(unit: Floats, indices: Numbers, nearest: _Nearest, threshold: float) -> NDArray[np.bool_]:
    """Compare each row with those before it in its block that are kept; return which are, and change `nearest`."""
    spare = margin(unit.shape[1])
    near = np.tril(unit @ unit.T, -1)
    fresh = nearest.of < 0
    # Above 0, so what is not below the diagonal is never taken.
    least = max(threshold - spare, np.finfo(np.float32).tiny)
    for row in np.flatnonzero(near.max(axis=1) >= least):
        columns = np.flatnonzero((near[row] >= least) & fresh)
        if not len(columns):
            continue
        columns = columns[near[row, columns] >= near[row, columns].max() - 2 * spare]
        scores = exact(unit[columns], unit[row])
        best = int(scores.argmax())
        if scores[best] >= np.float32(threshold) and scores[best] > nearest.scores[row]:
            nearest.scores[row], nearest.of[row] = scores[best], indices[columns[best]]
            fresh[row] = False
    return fresh
