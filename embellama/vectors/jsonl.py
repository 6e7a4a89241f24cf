"""Read an output in JSON lines, and the lines beside an .npy."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.errors import InputError
from embellama.vectors.batch import NO_NUMBERS, Batch

# A line of more bytes is none of an output: what is embedded has 4 MiB at most, and a vector less than 1.
MAX_LINE_BYTES = 64 * 1024 * 1024


class _Row(msgspec.Struct):
    index: int
    status: str
    id: Any = None


class VectorLine(_Row):
    """What is read of a line for its vector."""

    embedding: list[float] | None = None


class ColumnLine(_Row):
    """What is read of a line for its columns."""

    columns: dict[str, Any] | None = None


class JsonLines:
    """Reads JSON lines, as `batch.Reader` says."""

    def __init__(self, path: Path):
        """Look at the first row that has a vector.

        Raises:
            InputError: It has none, or is no output of `embellama bulk`.
        """
        self._path = path
        n_failed = 0
        for line in _lines(path):
            row = _decoded(line, VectorLine, path, n_failed + 1)
            if row.status == "ok":
                break
            n_failed += 1
        else:
            raise InputError(f"{path}: " + (f"all of its {n_failed} rows failed" if n_failed else "it has no rows"))
        first = msgspec.json.decode(line)["embedding"] if row.embedding else []
        self.width = len(first)
        self.whole = all(isinstance(number, int) for number in first)
        _check_width(row, self.width, path, n_failed + 1)

    def batches(self, n_rows: int, *, vectors: bool) -> Iterator[Batch]:
        lines = enumerate(_lines(self._path))
        read = self._with_vectors if vectors else self._with_columns
        while (batch := read(itertools.islice(lines, n_rows), n_rows)).n_rows:
            yield batch

    def _with_vectors(self, lines: Iterable[tuple[int, bytes]], most: int) -> Batch:
        numbers = np.empty((most, self.width), np.float32)
        rows: list[tuple[int, Any, int]] = []
        n_rows = 0
        for place, line in lines:
            n_rows += 1
            row = _decoded(line, VectorLine, self._path, place + 1)
            if row.status == "ok":
                _check_width(row, self.width, self._path, place + 1)
                numbers[len(rows)] = row.embedding
                rows.append((row.index, row.id, place))
        return _batch(n_rows, rows, numbers[: len(rows)], ())

    def _with_columns(self, lines: Iterable[tuple[int, bytes]], most: int) -> Batch:
        decoded = [(place, _decoded(line, ColumnLine, self._path, place + 1)) for place, line in lines]
        good = [(place, row) for place, row in decoded if row.status == "ok"]
        rows = [(row.index, row.id, place) for place, row in good]
        return _batch(len(decoded), rows, NO_NUMBERS, [row.columns for _, row in good])


def _batch(n_rows: int, rows: list[tuple[int, Any, int]], numbers: NDArray[Any], columns: Sequence[Any]) -> Batch:
    """Make a batch of indices, ids and places."""
    indices, places = (np.array([row[i] for row in rows], np.int64) for i in (0, 2))
    return Batch(n_rows, indices, [row[1] for row in rows], places, numbers, columns)


def read_lines(path: Path) -> Iterator[ColumnLine]:
    """Read lines without vectors, those of rows that failed, too. Raises `InputError`."""
    for number, line in enumerate(_lines(path), 1):
        yield _decoded(line, ColumnLine, path, number)


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{path} is no output of embellama bulk: a line has more than {MAX_LINE_BYTES} bytes")
            yield line


def _decoded(line: bytes, kind: type[Any], path: Path, number: int) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        if number > 1 and not line.endswith(b"\n"):
            raise InputError(f"{path} is cut: its line {number} has no end") from None
        raise InputError(f"{path}: line {number} is no row of an output of embellama bulk: {error}") from None


def _check_width(row: VectorLine, width: int, path: Path, number: int) -> None:
    n_numbers = len(row.embedding or ())
    if not n_numbers or n_numbers != width:
        wanted = f"; those before have {width}" if n_numbers else ", though it did not fail"
        raise InputError(f"{path}: line {number} has a vector of {n_numbers} numbers{wanted}")
