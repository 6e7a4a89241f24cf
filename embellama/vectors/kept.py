"""`KeptRows`: rows that later ones are compared with, more than memory may hold.

SpilledRows: unit rows in a temporary file      ReadAgain: only their places, and the rows where they already lie
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embellama.vectors.block import Block, Floats, Numbers, block_rows


class KeptRows(Protocol):
    """Keeps rows, and gives them back in the order in which they came."""

    def add(self, block: Block, kept: NDArray[np.bool_]) -> None:
        """Keep those rows of a block that `kept`, ``(n,)``, marks."""

    def units(self) -> Iterator[Floats]:
        """Give back the rows, scaled to unit length: ``(n, dim) float32`` at a time."""

    def close(self) -> None:
        """Forget them."""


class SpilledRows:
    """Keeps rows in a temporary file, which has no name and goes with the process, however that ends.

    Attributes:
        n_bytes: How long it is.
    """

    def __init__(self, dim: int, *, n_rows: int | None = None):
        """Prepare for rows of `dim` numbers, given back `n_rows` at a time, or as many as `block_rows` says.

        Raises:
            OSError: There is no place for temporary files.
        """
        self._dim, self._n_rows = dim, n_rows or block_rows(dim)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.n_bytes = 0

    def add(self, block: Block, kept: NDArray[np.bool_]) -> None:
        """Keep rows; raise `OSError`, which names the folder, if they cannot be written."""
        data = block.unit[kept].tobytes()
        try:
            self._file.seek(self.n_bytes)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None
        self.n_bytes += len(data)

    def units(self) -> Iterator[Floats]:
        n_bytes = 4 * self._dim * self._n_rows
        for start in range(0, self.n_bytes, n_bytes):
            self._file.seek(start)
            data = self._file.read(min(n_bytes, self.n_bytes - start))
            yield np.frombuffer(data, np.float32).reshape(-1, self._dim)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is needed no more
            self._file.close()


class ReadAgain:
    """Keeps the places of rows, and reads them again where they lie."""

    def __init__(self, take: Callable[[Numbers], NDArray[Any]], dim: int, *, n_rows: int | None = None):
        """Prepare to take rows with `take`: places ``(n,) int64``, increasing, in; ``(n, dim)``, floats, out.

        They are given back `n_rows` at a time, or as many as `block_rows` says.
        """
        self._take, self._n_rows = take, n_rows or block_rows(dim)
        self._places: list[Numbers] = []

    def add(self, block: Block, kept: NDArray[np.bool_]) -> None:
        self._places.append(block.places[kept])

    def units(self) -> Iterator[Floats]:
        places = np.concatenate([np.empty(0, np.int64), *self._places])
        self._places = [places]
        for start in range(0, len(places), self._n_rows):
            part = places[start : start + self._n_rows]
            rows = np.asarray(self._take(part), np.float32)
            yield Block.checked(part, [], part, rows, "rows").unit

    def close(self) -> None:
        self._places = []
