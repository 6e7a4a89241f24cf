"""`VectorRows`: the vectors of a column as rows of numbers, without copying them where they lie together.

fixed-size lists, or lists of one length, of floats or int8 ──► VectorRows: rows, valid
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embellama.errors import InputError
from embellama.frames.lists import one_array, valid_of


class VectorRows(NamedTuple):
    """The vectors of a column.

    rows: Those of the rows that are not null, ``(n_valid, dim)``, floats or int8.
    valid: Which rows are not null, ``(n_rows,)``.
    """

    rows: NDArray[Any]
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, column: Any, name: str) -> "VectorRows":
        """Read a column, an Arrow array in chunks or not; `name` is what it is called in errors.

        Raises:
            InputError: It has no vectors, or they differ in length, or one lacks a number.
        """
        array = one_array(column)
        if pa.types.is_null(array.type):
            return cls(np.empty((0, 0), np.float32), np.zeros(len(array), bool))
        kind = array.type
        if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise InputError(f"column {name!r} is {kind}, not vectors{_hint(kind)}")
        if not (pa.types.is_floating(kind.value_type) or pa.types.is_int8(kind.value_type)):
            raise InputError(
                f"column {name!r} has vectors of {kind.value_type}; they can be of float64, float32, float16 or int8"
            )
        valid = valid_of(array)
        values = array.flatten()
        if values.null_count:
            raise InputError(f"column {name!r} has a vector with {values.null_count} of its numbers null")
        numbers = values.to_numpy(zero_copy_only=False)
        n_valid = int(valid.sum())
        dim = kind.list_size if pa.types.is_fixed_size_list(kind) else _one_length(array, name)
        return cls(numbers.reshape(n_valid, dim), valid)

    @property
    def places(self) -> NDArray[np.int64]:
        """The rows of the column that have a vector, ``(n_valid,)``."""
        return np.flatnonzero(self.valid)


def vectors_of(given: Any, name: str) -> NDArray[Any]:
    """Return vectors that were given with a call as rows, ``(n, dim)``.

    Args:
        given: One vector or several: numbers in lists, an array of NumPy or Arrow, or a column of a frame.
        name: What they are called in errors.

    Raises:
        InputError: They are none.
    """
    if hasattr(given, "to_arrow"):  # a Polars Series
        given = given.to_arrow()
    if isinstance(given, pa.Array | pa.ChunkedArray) and not pa.types.is_floating(given.type):
        read = VectorRows.of(given, name)
        if not read.valid.all():
            raise InputError(f"{name}: vector {int(np.argmin(read.valid))} is null")
        return read.rows
    try:
        rows = np.atleast_2d(np.asarray(given))
    except ValueError as error:  # of different lengths
        raise InputError(f"{name}: {error}") from None
    if rows.ndim != 2 or rows.dtype.kind not in "fi" or not rows.size:
        raise InputError(f"{name} are {rows.dtype} of shape {rows.shape}; they must be vectors of numbers, (n, dim)")
    return rows if rows.dtype.kind == "f" or rows.dtype == np.int8 else rows.astype(np.float32)


def _one_length(array: Any, name: str) -> int:
    lengths = np.unique(array.value_lengths().drop_null().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise InputError(f"column {name!r} has vectors of {lengths[0]} numbers and of {lengths[-1]}")
    return int(lengths[0]) if len(lengths) else 0


def _hint(kind: Any) -> str:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    return ": embed it first" if text else ""
