"""Read an output in Parquet or Arrow."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from embellama.bulk.extra import arrow, extra
from embellama.errors import InputError
from embellama.vectors.batch import NO_NUMBERS, Batch

# An Arrow file is mapped anew after so many bytes: pages that were read count as memory until they are unmapped.
MAPPED_BYTES = 64 * 1024 * 1024

# Of each column of a Parquet file, so much is read at once.
READ_BYTES = 1024 * 1024


class _Table(ABC):
    """Reads a table, as `batch.Reader` says."""

    def __init__(self, path: Path):
        """Read the schema.

        Raises:
            InputError: It cannot be read, or is no output of `embellama bulk`.
        """
        self._path = path
        pa = arrow()
        with self._naming():
            schema = self._schema()
        for name in ("index", "id", "status", "embedding"):
            if name not in schema.names:
                raise InputError(f"{path} is no output of embellama bulk: it has no column {name!r}")
        type = schema.field("embedding").type
        if not pa.types.is_fixed_size_list(type):
            raise InputError(f"{path}: its column 'embedding' is {type}; it must be a list of fixed size")
        self.width = type.list_size
        self.whole = pa.types.is_integer(type.value_type)
        self._has_columns = "columns" in schema.names

    def batches(self, n_rows: int, *, vectors: bool) -> Iterator[Batch]:
        names = ["index", "id", "status"]
        names += ["embedding"] if vectors else ["columns"] if self._has_columns else []
        batches = self._batches(n_rows, names)
        place = 0
        while True:
            with self._naming():
                batch = next(batches, None)
            if batch is None:
                return
            for start in range(0, batch.num_rows, n_rows):
                part = batch.slice(start, n_rows)
                with self._naming():
                    yield self._batch(part, place, vectors=vectors)
                place += part.num_rows

    @abstractmethod
    def _schema(self) -> Any: ...

    @abstractmethod
    def _batches(self, n_rows: int, names: list[str]) -> Iterator[Any]: ...

    def _batch(self, batch: Any, place: int, *, vectors: bool) -> Batch:
        ok = np.array([status == "ok" for status in batch["status"].to_pylist()], bool)
        n_rows, places = batch.num_rows, place + np.flatnonzero(ok)
        if not ok.all():
            batch = batch.filter(arrow().array(ok))
        numbers, columns = NO_NUMBERS, [None] * len(places)
        if vectors:
            values = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
            if len(values) != len(places) * self.width:
                raise InputError(
                    f"{self._path}: one of rows {place} to {place + n_rows - 1} has no vector, though it did not fail"
                )
            numbers = values.reshape(-1, self.width)
        elif self._has_columns:
            columns = [msgspec.json.decode(text) for text in batch["columns"].to_pylist()]
        indices = batch["index"].to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        return Batch(n_rows, indices, batch["id"].to_pylist(), places, numbers, columns)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in errors of pyarrow's."""
        try:
            yield
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{self._path} cannot be read: {error}") from error


class Parquet(_Table):
    """Reads Parquet."""

    def _schema(self) -> Any:
        with self._open() as file:
            return file.schema_arrow

    def _batches(self, n_rows: int, names: list[str]) -> Iterator[Any]:
        with self._open() as file:
            yield from file.iter_batches(n_rows, columns=names)

    def _open(self) -> Any:
        # Otherwise a whole row group is held, and, where it was read ahead, all of the file in the end.
        return extra("pyarrow.parquet", "Parquet files").ParquetFile(
            self._path, pre_buffer=False, buffer_size=READ_BYTES
        )


class Arrow(_Table):
    """Reads an Arrow file, mapped."""

    def _schema(self) -> Any:
        with arrow().memory_map(str(self._path)) as source, arrow().ipc.open_file(source) as reader:
            return reader.schema

    def _batches(self, n_rows: int, names: list[str]) -> Iterator[Any]:
        number, n_batches = 0, 1
        while number < n_batches:
            with arrow().memory_map(str(self._path)) as source, arrow().ipc.open_file(source) as reader:
                n_batches, n_bytes = reader.num_record_batches, 0
                while number < n_batches and n_bytes < MAPPED_BYTES:
                    batch = reader.get_batch(number).select(names)
                    number, n_bytes = number + 1, n_bytes + batch.nbytes
                    yield batch
