"""Readers of inputs: records from any place on, each with the place after it.

Source ── reader_of ──► TextLines, JsonLines, Csv, tables, documents ── records(at) ──► (record, the place after it)

A row that cannot be read is a `RowError` in place of its record; the rows after it are read as ever.
"""

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Protocol

import msgspec

from embellama.bulk.documents.pdf import Pdf
from embellama.bulk.documents.text import TextDocument
from embellama.bulk.files import MAX_ROW_BYTES, Lines, Source
from embellama.bulk.rows import Record, RowError, RowTooLong
from embellama.bulk.tables import ArrowTable, ParquetTable
from embellama.errors import InputError

#: The column of what has no names for columns.
TEXT = "text"

#: A line of JSON: an object with columns, or a text.
JsonLine = dict[str, Any] | str


class Reader(Protocol):
    """Reads one input."""

    @property
    def size(self) -> int | None:
        """The place of the end; None if it is not known."""

    def columns(self, stream: IO[bytes] | None) -> list[str]:
        """Return the names of the columns of the first row that can be read; of a text's beginning, `stream`."""

    def records(self, at: int, columns: Sequence[str] | None) -> Iterator[tuple[Record, int]]:
        """Read records from a place on.

        Args:
            at: 0, or a place that came with a record.
            columns: Those that are wanted, where others need not be read; None for all.
        """


def reader_of(source: Source) -> Reader:
    """Return the reader for a source."""
    return _READERS[source.format](source)


class _Textual(ABC):
    """Reads a file of text."""

    def __init__(self, source: Source):
        self._source = source

    @property
    def size(self) -> int | None:
        return os.path.getsize(self._source.path) if self._source.seekable else None

    def columns(self, stream: IO[bytes] | None) -> list[str]:
        assert stream
        records = (record for record, _ in self._read(Lines(stream, 0)) if not isinstance(record, RowError))
        return list(next(records, ()))

    def records(self, at: int, columns: Sequence[str] | None) -> Iterator[tuple[Record, int]]:
        with self._source.open(at) as stream:
            yield from self._read(Lines(stream, at))

    @abstractmethod
    def _read(self, lines: Lines) -> Iterator[tuple[Record, int]]: ...

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode(self._source.line_encoding)
        except UnicodeDecodeError as error:
            reason = f"byte {error.start} of its line is {line[error.start]:#04x}"
            raise RowError(f"the row is not {self._source.encoding}: {reason}") from None


class _LineByLine(_Textual):
    """Reads a file of which each line is a record."""

    def _read(self, lines: Lines) -> Iterator[tuple[Record, int]]:
        for line in lines:
            record = line if isinstance(line, RowTooLong) else self._record(line)
            if record is not None:
                yield record, lines.at

    @abstractmethod
    def _record(self, line: bytes) -> Record | None: ...


class TextLines(_LineByLine):
    """Reads a text from each line."""

    def _record(self, line: bytes) -> Record | None:
        try:
            return {TEXT: self._decoded(line).rstrip("\r\n")}
        except RowError as error:
            return error


class JsonLines(_LineByLine):
    """Reads an object, or a text, from each line that is not blank."""

    def _record(self, line: bytes) -> Record | None:
        if not line.strip():
            return None
        try:
            value = msgspec.json.decode(self._decoded(line), type=JsonLine)
        except msgspec.ValidationError:
            return RowError("the row is neither a JSON object nor a JSON string")
        except msgspec.DecodeError as error:
            return RowError(f"the row is not JSON: {error}")
        except RowError as error:
            return error
        return {TEXT: value} if isinstance(value, str) else value


class Csv(_Textual):
    """Reads a row from each record of a CSV, which may have several lines."""

    def columns(self, stream: IO[bytes] | None) -> list[str]:
        assert stream
        first = next((row for row in self._rows(Lines(stream, 0)) if row), [])
        if isinstance(first, RowError):
            raise InputError(f"{self._source.path}: {first}")
        return first if self._source.header else [str(number) for number in range(len(first))]

    def _read(self, lines: Lines) -> Iterator[tuple[Record, int]]:
        names, is_header = self._source.columns, self._source.header and lines.at == 0
        for row in self._rows(lines):
            if is_header and row:
                is_header = False
            elif isinstance(row, RowError):
                yield row, lines.at
            elif row and len(row) != len(names):
                yield RowError(f"the row has {len(row)} columns; the first row has {len(names)}"), lines.at
            elif row:
                yield dict(zip(names, row, strict=True)), lines.at

    def _rows(self, lines: Lines) -> Iterator[list[str] | RowError]:
        csv.field_size_limit(MAX_ROW_BYTES)
        reader = self._reader(lines)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RowError(f"the row is not CSV: {error}")
            except RowError as error:
                yield error
                reader = self._reader(lines)  # what gave it its lines has ended

    def _reader(self, lines: Lines) -> Iterator[list[str]]:
        return csv.reader(map(self._text, lines), delimiter=self._source.delimiter)

    def _text(self, line: bytes | RowTooLong) -> str:
        if isinstance(line, RowTooLong):
            raise line
        return self._decoded(line)


_READERS: dict[str, Callable[[Source], Reader]] = {
    "lines": TextLines,
    "jsonl": JsonLines,
    "csv": Csv,
    "parquet": ParquetTable,
    "arrow": ArrowTable,
    "text": TextDocument,
    "pdf": Pdf,
}
