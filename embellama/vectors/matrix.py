"""Read an output in .npy, with the lines beside it that say what each of its rows is."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embellama.errors import InputError
from embellama.vectors.batch import NO_NUMBERS, Batch
from embellama.vectors.block import Numbers
from embellama.vectors.jsonl import ColumnLine, read_lines


class Matrix:
    """Reads a matrix, as `batch.Reader` says. Of the file so much is mapped at a time as is asked for.

    Attributes:
        n_rows: Its rows.
    """

    def __init__(self, path: Path):
        """Read the header.

        Raises:
            InputError: It is no matrix of numbers, or the file is shorter than it says.
        """
        self._path = path
        self._lines: Path | None = path.with_name(path.name + ".rows.jsonl")
        if not self._lines.exists():
            self._lines = None
        try:
            shape, by_columns, self._type, self._at = _header(path)
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        if len(shape) != 2 or by_columns or self._type.kind not in "fiu":
            raise InputError(f"{path} holds {self._type} of shape {shape}; it must be rows of numbers")
        self.n_rows, self.width = shape
        self.whole = self._type.kind != "f"
        n_bytes = self._at + self._type.itemsize * self.n_rows * self.width
        if (there := path.stat().st_size) < n_bytes:
            raise InputError(f"{path} is cut: it has {there} bytes of {n_bytes}")

    def batches(self, n_rows: int, *, vectors: bool) -> Iterator[Batch]:
        lines = read_lines(self._lines) if self._lines else None
        for start in range(0, self.n_rows, n_rows):
            stop = min(start + n_rows, self.n_rows)
            places = np.arange(start, stop)
            numbers = self._mapped(start, stop) if vectors else NO_NUMBERS
            if lines is None:
                yield Batch(len(places), places, [None] * len(places), places, numbers, [None] * len(places))
                continue
            read = list(itertools.islice(lines, len(places)))
            if len(read) < len(places):
                self._differ(start + len(read))
            yield _joined(read, places, numbers)
        if lines is not None and (more := sum(1 for _ in lines)):
            self._differ(self.n_rows + more)

    def take(self, places: Numbers) -> NDArray[Any]:
        """Return the rows at some places, ``(n,)``, increasing."""
        first = int(places[0])
        return np.asarray(self._mapped(first, int(places[-1]) + 1)[places - first])

    def _mapped(self, start: int, stop: int) -> NDArray[Any]:
        at = self._at + start * self.width * self._type.itemsize
        return np.memmap(self._path, self._type, "r", at, (stop - start, self.width))

    def _differ(self, n_lines: int) -> None:
        assert self._lines
        raise InputError(f"{self._path} has {self.n_rows} rows and {self._lines} has {n_lines} lines")


def _joined(lines: list[ColumnLine], places: Numbers, numbers: NDArray[Any]) -> Batch:
    ok = np.array([line.status == "ok" for line in lines], bool)
    good = [line for line in lines if line.status == "ok"]
    indices = np.array([line.index for line in good], np.int64)
    if len(good) < len(lines) and numbers is not NO_NUMBERS:
        numbers = numbers[ok]
    return Batch(len(lines), indices, [line.id for line in good], places[ok], numbers, [line.columns for line in good])


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether it lies column by column, the type of its numbers, and where they begin."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, type = read(file)
        return shape, by_columns, type, file.tell()
