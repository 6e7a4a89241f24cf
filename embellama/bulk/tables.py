"""Readers of tables: Parquet and Arrow. A place in one is a number of rows.

Parquet is read on from the row group that the place is in, an Arrow file from the batch; an Arrow stream from its
beginning.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import IO, Any

from embellama.bulk.extra import arrow, extra
from embellama.bulk.files import Source
from embellama.bulk.rows import Record
from embellama.errors import InputError

# Rows that are made Python's values at once.
BATCH_ROWS = 1024


class _Table(ABC):
    """Reads a table.

    Attributes:
        path: Its file.
    """

    def __init__(self, source: Source):
        if source.path == "-" or source.compression:
            raise InputError(f"{source.path}: {source.format} is read from a plain file only")
        self.path = source.path

    @property
    def size(self) -> int | None:
        with self._naming():
            return self._n_rows()

    def columns(self, stream: IO[bytes] | None) -> list[str]:
        with self._naming():
            return self._names()

    def records(self, at: int, columns: Sequence[str] | None) -> Iterator[tuple[Record, int]]:
        batches = self._batches(at, columns)
        while True:
            with self._naming():
                batch = next(batches, None)
            if batch is None:
                return
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for record in batch.slice(start, BATCH_ROWS).to_pylist():
                    at += 1
                    yield record, at

    @abstractmethod
    def _n_rows(self) -> int | None: ...

    @abstractmethod
    def _names(self) -> list[str]: ...

    @abstractmethod
    def _batches(self, at: int, columns: Sequence[str] | None) -> Iterator[Any]: ...

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in errors of pyarrow's."""
        try:
            yield
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{self.path} cannot be read: {error}") from error


class ParquetTable(_Table):
    """Reads Parquet."""

    def _n_rows(self) -> int | None:
        with self._open() as file:
            return int(file.metadata.num_rows)

    def _names(self) -> list[str]:
        with self._open() as file:
            return file.schema_arrow.names  # type: ignore[no-any-return]

    def _batches(self, at: int, columns: Sequence[str] | None) -> Iterator[Any]:
        with self._open() as file:
            for group in range(file.metadata.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if at >= n_rows:
                    at -= n_rows
                    continue
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    skipped = min(at, batch.num_rows)
                    at -= skipped
                    yield batch.slice(skipped)

    def _open(self) -> Any:
        return extra("pyarrow.parquet", "Parquet files").ParquetFile(self.path)


class ArrowTable(_Table):
    """Reads Arrow IPC, as a file or as a stream."""

    def _n_rows(self) -> int | None:
        with self._open() as reader:
            return (
                sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
                if _is_file(self.path)
                else None
            )

    def _names(self) -> list[str]:
        with self._open() as reader:
            return reader.schema.names  # type: ignore[no-any-return]

    def _batches(self, at: int, columns: Sequence[str] | None) -> Iterator[Any]:
        with self._open() as reader:
            batches = map(reader.get_batch, range(reader.num_record_batches)) if _is_file(self.path) else iter(reader)
            for batch in batches:
                skipped = min(at, batch.num_rows)
                at -= skipped
                yield (batch if columns is None else batch.select(list(columns))).slice(skipped)

    def _open(self) -> Any:
        ipc = arrow().ipc
        source = arrow().memory_map(self.path)
        return ipc.open_file(source) if _is_file(self.path) else ipc.open_stream(source)


def _is_file(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(6) == b"ARROW1"
