"""Find the rows that are most like a query: exactly, a block of them at a time."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.errors import InputError, check_number
from embellama.vectors.block import Block, Floats, Numbers, blocks_of
from embellama.vectors.cosine import exact, margin


class Matches(NamedTuple):
    """The best rows for one query, the best first; of equal ones, that with the smallest index.

    indices: ``(k,) int64``, fewer if there are fewer rows.
    scores: Their cosines, ``(k,) float32``.
    """

    indices: Numbers
    scores: Floats


def top_k(queries: NDArray[Any], blocks: Iterable[Block], k: int) -> list[Matches]:
    """Return the `k` rows most like each query.

    The result is that of comparing all rows with all queries in float64, whatever blocks they come in. A block is held
    at a time, and `k` rows' numbers for each query.

    Args:
        queries: ``(n_queries, dim)``, floats.
        blocks: The rows.
        k: How many, at least 1.

    Raises:
        InvalidOption: `k` is below 1.
        InputError: A query is no vector, or has not as many numbers as the rows.
    """
    check_number("top_k", k, "it must be at least 1", 1)
    units = np.concatenate([block.unit for block in blocks_of(queries, name="queries")])
    best = [Matches(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    for block in blocks:
        if block.rows.shape[1] != units.shape[1]:
            raise InputError(f"the queries have {units.shape[1]} dimensions and the rows {block.rows.shape[1]}")
        near = units @ block.unit.T
        best = [_better(*each, block, k) for each in zip(best, queries, near, strict=True)]
    return best


def _better(best: Matches, query: NDArray[Any], near: Floats, block: Block, k: int) -> Matches:
    """Return the best of those so far and those of a block, of which `near` has the cosines, nearly right."""
    spare = margin(block.rows.shape[1])
    least = -np.inf
    if len(near) > k:
        least = np.partition(near, len(near) - k)[len(near) - k] - 2 * spare
    if len(best.scores) == k:
        least = max(least, best.scores[-1] - spare)
    places = np.flatnonzero(near >= least)
    if not len(places):
        return best
    indices = np.concatenate([best.indices, block.indices[places]])
    scores = np.concatenate([best.scores, exact(block.rows[places], np.asarray(query, np.float32))])
    order = np.lexsort((indices, -scores))[:k]
    return Matches(indices[order], scores[order])
