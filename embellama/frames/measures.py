"""Columns of vectors compared: with each other, with one vector, with queries, with labels, with themselves.

VectorRows ──► similarity of pairs, or blocks ──► `embellama.vectors` ──► Arrow arrays
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embellama.errors import InputError
from embellama.frames.asked import AskedVectors
from embellama.frames.lists import mask_of
from embellama.frames.numbers import VectorRows
from embellama.vectors.block import Block, blocks_of
from embellama.vectors.classify import classify
from embellama.vectors.cosine import exact
from embellama.vectors.duplicates import near_duplicates
from embellama.vectors.kept import ReadAgain
from embellama.vectors.search import Matches, top_k

SCORE = pa.float32()

# A row's label, its cosine, and by how much that is above the next label's.
LABEL = pa.struct([("label", pa.large_string()), ("score", pa.float32()), ("margin", pa.float32())])

# The best rows for one query, the best first.
MATCHES = pa.large_list(pa.struct([("row", pa.uint32()), ("score", pa.float32())]))

# A row that is much like an earlier one.
DUPLICATE = pa.schema([("index", pa.uint32()), ("duplicate_of", pa.uint32()), ("score", pa.float32())])


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Return the cosine of each row of `a`, ``(n, dim)``, and the one beside it of `b`; 0 for a vector of zeros."""
    found = np.zeros(len(a), np.float32)
    some = a.any(axis=1) & b.any(axis=-1)
    if some.any():
        found[some] = exact(a[some], b[some] if b.ndim == 2 else b)
    return found


def dots(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Return the dot product of each row of `a`, ``(n, dim)``, and the one beside it of `b`, summed in float64."""
    ones = "ij,ij->i" if b.ndim == 2 else "ij,j->i"
    return np.einsum(ones, a, b, dtype=np.float64, casting="unsafe").astype(np.float32)  # type: ignore[no-any-return]


def compared(measure: Any, column: Any, name: str, vector: NDArray[Any]) -> Any:
    """Measure each row of a column against one vector, ``(dim,)``; an Arrow array of floats."""
    read = VectorRows.of(column, name)
    _check_lengths(read, name, len(vector), "the vector it is compared with")
    return _scores(measure(read.rows, vector) if len(read.rows) else np.empty(0, np.float32), read.valid)


def compared_pairs(measure: Any, columns: Sequence[Any], names: Sequence[str]) -> Any:
    """Measure each row of a column against that of another; one of them may have one row for all."""
    a, b = (VectorRows.of(column, name) for column, name in zip(columns, names, strict=True))
    n = max(len(a.valid), len(b.valid)) if len(a.valid) and len(b.valid) else 0
    at_a, at_b = _at(a, n, names), _at(b, n, names)
    valid = (at_a >= 0) & (at_b >= 0)
    if not valid.any():
        return _scores(np.empty(0, np.float32), valid)
    _check_lengths(a, names[0], b.rows.shape[1], f"column {names[1]!r}")
    return _scores(measure(a.rows[at_a[valid]], b.rows[at_b[valid]]), valid)


def labelled(column: Any, name: str, labels: Sequence[str], asked: AskedVectors) -> Any:
    """Give each row the label whose vector it is most like: an Arrow array of `LABEL`."""
    read = VectorRows.of(column, name)
    found = list(classify(asked.rows(read.rows.shape[1]), _blocks(read, name))) if len(read.rows) else []
    positions, scores, margins = (
        np.concatenate([np.empty(0, kind), *(each[i] for each in found)])
        for i, kind in ((1, np.int64), (2, np.float32), (3, np.float32))
    )
    names = pa.array(labels, pa.large_string()).take(pa.array(positions.astype(np.int64)))
    made = pa.StructArray.from_arrays(
        [names, pa.array(scores.astype(np.float32)), pa.array(margins.astype(np.float32))],
        fields=[LABEL.field(i) for i in range(LABEL.num_fields)],
    )
    at = np.full(len(read.valid), -1, np.int64)
    at[read.valid] = np.arange(len(read.rows))
    return made.take(pa.array(at, mask=~read.valid))


def matches(column: Any, name: str, asked: AskedVectors, k: int) -> Any:
    """Find the `k` rows most like each query: an Arrow array of `MATCHES`, a row for each query."""
    read = VectorRows.of(column, name)
    found: list[Matches] = []
    if len(read.rows):
        found = top_k(asked.rows(read.rows.shape[1]), _blocks(read, name), k)
    else:
        found = [Matches(np.empty(0, np.int64), np.empty(0, np.float32))] * asked.n
    ends = np.cumsum([0, *(len(each.indices) for each in found)])
    rows = np.concatenate([np.empty(0, np.uint32), *(each.indices for each in found)]).astype(np.uint32)
    scores = np.concatenate([np.empty(0, np.float32), *(each.scores for each in found)])
    item = MATCHES.value_type
    fields = [item.field(i) for i in range(item.num_fields)]
    items = pa.StructArray.from_arrays([pa.array(rows), pa.array(scores)], fields=fields)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), items)


def duplicates(column: Any, name: str, threshold: float) -> Any:
    """Find the rows that are much like an earlier one: an Arrow table of `DUPLICATE`, by their order."""
    read = VectorRows.of(column, name)
    kept = ReadAgain(lambda places: read.rows[places], max(1, read.rows.shape[1]))
    parts: list[tuple[NDArray[Any], ...]] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    with contextlib.closing(kept):
        for found in near_duplicates(_blocks(read, name), threshold, kept):
            parts.append((found.block.indices[found.positions], found.of, found.scores))
    arrays = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return pa.table([pa.array(array, field.type) for array, field in zip(arrays, DUPLICATE, strict=True)], DUPLICATE)


def _blocks(read: VectorRows, name: str) -> Iterator[Block]:
    return blocks_of(read.rows, indices=read.places, name=f"column {name!r}") if len(read.rows) else iter(())


def _at(read: VectorRows, n: int, names: Sequence[str]) -> NDArray[np.int64]:
    """Return for each of `n` rows where its vector is among `read.rows`, -1 where it is null."""
    at = np.full(len(read.valid), -1, np.int64)
    at[read.valid] = np.arange(len(read.rows))
    if len(at) == n:
        return at
    if len(at) == 1 or not n:
        return np.repeat(at[:1], n)
    raise InputError(f"columns {names[0]!r} and {names[1]!r} have {n} and {len(at)} rows")


def _scores(scores: NDArray[np.float32], valid: NDArray[np.bool_]) -> Any:
    whole = np.zeros(len(valid), np.float32)
    whole[valid] = scores
    return pa.array(whole, SCORE, mask=None if mask_of(valid) is None else ~valid)


def _check_lengths(read: VectorRows, name: str, n: int, other: str) -> None:
    if len(read.rows) and read.rows.shape[1] != n:
        raise InputError(f"column {name!r} has vectors of {read.rows.shape[1]} numbers, and {other} has {n}")
