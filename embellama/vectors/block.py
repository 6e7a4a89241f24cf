"""`Block`: some rows of many, in memory together, each checked to be a vector.

StoredVectors.blocks, or blocks_of an array ──► Block ──► search, duplicates, classify, compare
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.errors import InputError

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

# Rows of a block together have so many bytes as float32. Less, and a product of two blocks is too small to use all
# cores; more only costs memory.
BLOCK_BYTES = 8 * 1024 * 1024

# And at most so many rows, as near-duplicates are found by products of two blocks: 64 MiB.
BLOCK_ROWS = 4096

# Lengths that can be computed with, and divided by, in float32.
PLAIN_NORMS = (1e-15, 1e15)


class Block(NamedTuple):
    """Rows that are held together.

    indices: What each row is called in messages and results, ``(n,) int64``.
    ids: The id of each, of any type; None where it has none.
    places: Where each is among all rows, also those that are left out, ``(n,) int64``, increasing.
    rows: ``(n, dim) float32``, finite, none all zeros.
    norms: The length of each, ``(n,) float64``.
    """

    indices: Numbers
    ids: Sequence[Any]
    places: Numbers
    rows: Floats
    norms: NDArray[np.float64]

    @classmethod
    def checked(cls, indices: Numbers, ids: Sequence[Any], places: Numbers, rows: Floats, name: str) -> "Block":
        """Make a block; raise `InputError` for the first row that is no vector. `name` is what holds the rows."""
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        odd = np.flatnonzero(~((norms > PLAIN_NORMS[0]) & (norms < PLAIN_NORMS[1])))
        norms = norms.astype(np.float64)
        # What is too large or too small to be squared in float32 is no vector only if it is so in float64, too.
        norms[odd] = np.linalg.norm(rows[odd].astype(np.float64), axis=1)
        for i in odd[~(np.isfinite(norms[odd]) & (norms[odd] > 0))][:1]:
            what = "all zeros" if norms[i] == 0 else "not finite"
            raise InputError(f"{name}: the vector of row {indices[i]} is {what}")
        return cls(indices, ids, places, rows, norms)

    def part(self, start: int, stop: int) -> "Block":
        """Return the rows from one position to another."""
        part = slice(start, stop)
        return Block(self.indices[part], self.ids[part], self.places[part], self.rows[part], self.norms[part])

    @property
    def unit(self) -> Floats:
        """The rows scaled to unit length, ``(n, dim) float32``."""
        if len(self.norms) and not PLAIN_NORMS[0] < self.norms.min() <= self.norms.max() < PLAIN_NORMS[1]:
            return (self.rows / self.norms[:, None]).astype(np.float32)
        return self.rows * (1 / self.norms).astype(np.float32)[:, None]


def block_rows(dim: int) -> int:
    """Return how many rows of `dim` numbers a block has."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * dim)))


def blocks_of(
    rows: NDArray[Any], *, indices: Numbers | None = None, n_rows: int | None = None, name: str = "rows"
) -> Iterator[Block]:
    """Cut rows that are in memory into blocks.

    Args:
        rows: ``(n, dim)``, numbers.
        indices: What each is called, ``(n,)``; by default its position.
        n_rows: Rows of a block; by default what `block_rows` says.
        name: What they are called in errors.

    Raises:
        InputError: A row is not finite, or all zeros.
    """
    step = n_rows or block_rows(rows.shape[1])
    for start in range(0, len(rows), step):
        part = np.asarray(rows[start : start + step], np.float32)
        places = np.arange(start, start + len(part))
        called = places if indices is None else indices[start : start + step]
        yield Block.checked(called, [None] * len(part), places, part, name)
