"""`Batch`: rows of an output as they are stored, and what every reader of a format does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embellama.vectors.block import Numbers


class Batch(NamedTuple):
    """Rows of an output, those that failed left out.

    n_rows: How many there were with those that failed.
    indices: Their numbers in the input of the run, ``(n,) int64``.
    ids: Their ids; None where they have none.
    places: Where they are among all rows of the output, ``(n,) int64``.
    numbers: Their vectors as they are stored, ``(n, width)``; only those places that were asked for, of any shape.
    columns: The input's columns of each, where the output has them; not beside `numbers`.
    """

    n_rows: int
    indices: Numbers
    ids: Sequence[Any]
    places: Numbers
    numbers: NDArray[Any]
    columns: Sequence[Mapping[str, Any] | None] = ()


class Reader(Protocol):
    """Reads one format of output.

    Attributes:
        width: Numbers that are stored for a vector.
        whole: Whether they are whole numbers: their dtype says what they mean.
    """

    width: int
    whole: bool

    def batches(self, n_rows: int, *, vectors: bool) -> Iterator[Batch]:
        """Read all rows, so many at a time at most, with their vectors, or without them and with their columns.

        Raises:
            InputError: The output is cut, or wrong in another way. The message names the file and the row.
        """


NO_NUMBERS = np.empty((0, 0))
