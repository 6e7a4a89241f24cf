"""Columns of lists as columns of their items, and back."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Lists(NamedTuple):
    """A column of lists.

    items: The items of all lists, one behind the other: an Arrow array.
    ends: Where each list ends among them, ``(n_rows,) int64``; a null one where the one before it does.
    valid: Which rows are not null, ``(n_rows,)``.
    """

    items: Any
    ends: NDArray[np.int64]
    valid: NDArray[np.bool_]

    @classmethod
    def of(cls, array: Any) -> "Lists | None":
        """Take an Arrow array of lists, of one length or not, apart; None if it is something else."""
        if pa.types.is_fixed_size_list(array.type):
            array = array.cast(pa.large_list(array.type.value_type))
        if not is_list(array.type):
            return None
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        # Without the items that may lie under a null.
        return cls(array.flatten(), np.cumsum(lengths, dtype=np.int64), valid_of(array))

    def with_items(self, items: Any) -> Any:
        """Return a column of lists of as many other items: an Arrow array."""
        offsets = pa.array(np.concatenate([[0], self.ends]), pa.int64())
        return pa.LargeListArray.from_arrays(offsets, items, mask=mask_of(self.valid))

    def place(self, item: int) -> tuple[int, int]:
        """Return the row of an item, and its position in that row's list."""
        row = int(np.searchsorted(self.ends, item, side="right"))
        return row, item - (int(self.ends[row - 1]) if row else 0)


def is_list(type: Any) -> bool:
    """Tell whether rows of an Arrow type are lists, of one length or not."""
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type))


def valid_of(array: Any) -> NDArray[np.bool_]:
    """Return which rows of an Arrow array are not null, ``(n_rows,)``."""
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)


def mask_of(valid: NDArray[np.bool_]) -> Any:
    """Return the Arrow mask of the rows that are null; None if none is."""
    return None if valid.all() else pa.array(~valid)


def one_array(column: Any) -> Any:
    """Return an Arrow array of a column that may be in chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def nulls(type: Any, n_rows: int) -> Any:
    """Return an Arrow array of a type that has only nulls."""
    return pa.nulls(n_rows, type)
