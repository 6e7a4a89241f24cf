"""`StoredVectors`: an output of `embellama bulk`, read block by block.

OUT.jsonl, .parquet, .arrow, .npy ── Reader: rows as they are stored ── as floats ──► Block
OUT.manifest.json ── which dtype the numbers are, which model made them ──╯

The format is found by content. Of an output without manifest nothing is known but its vectors.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.bulk.manifest import Manifest
from embellama.errors import InputError
from embellama.vectors.batch import Reader
from embellama.vectors.block import Block, Numbers, block_rows
from embellama.vectors.jsonl import JsonLines
from embellama.vectors.matrix import Matrix
from embellama.vectors.tables import Arrow, Parquet

BITS = ("binary", "ubinary")

READERS: dict[bytes, Callable[[Path], Reader]] = {
    b"PAR1": Parquet,
    b"ARROW1": Arrow,
    b"\x93NUMPY": Matrix,
    b"{": JsonLines,
}


class Described(NamedTuple):
    """What an output says of a row beside its vector.

    id: Its id; None if it has none.
    columns: The input's columns; None where they were not kept.
    """

    id: Any
    columns: dict[str, Any] | None


class StoredVectors:
    """The vectors of an output.

    Attributes:
        path: The output.
        manifest: What the run was asked, if the manifest is beside it.
        dtype: Which dtype its numbers have; ``float`` where they are floats without a manifest.
        dim: Numbers of a vector.
    """

    def __init__(self, path: str | Path):
        """Open an output.

        Raises:
            InputError: It cannot be read, is no output, is not finished, or has no vectors.
            ConfigError: Its manifest cannot be read, or a package that it needs is missing.
        """
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        _check_finished(self.path, self.manifest)
        self._reader = _reader(self.path)
        if self.manifest:
            self.dtype = str(self.manifest.options["dtype"])
        elif self._reader.whole:
            raise InputError(
                f"{path} holds whole numbers, and there is no {Manifest.path(self.path).name} beside it that says "
                "whether they are int8, uint8 or bits"
            )
        else:
            self.dtype = "float"
        self.dim = self._reader.width
        if self.dtype in BITS:
            dimensions = self.manifest.options.get("dimensions") if self.manifest else None
            self.dim = dimensions or 8 * self._reader.width
        if not self.dim:
            raise InputError(f"{path}: its vectors have no numbers")

    @property
    def take(self) -> Callable[[Numbers], NDArray[Any]] | None:
        """What reads rows at some places, ``(n,)``, as floats, ``(n, dim)``; None where they must be read in order."""
        reader = self._reader
        return (lambda places: self._floats(reader.take(places))) if isinstance(reader, Matrix) else None

    def blocks(self, n_rows: int | None = None) -> Iterator[Block]:
        """Read all vectors but those of rows that failed.

        Args:
            n_rows: Most rows at a time; by default what `block_rows` says.

        Raises:
            InputError: The output is cut or wrong, a vector is not finite or all zeros, or there is none.
        """
        n_read = n_given = 0
        for batch in self._reader.batches(n_rows or block_rows(self.dim), vectors=True):
            n_read += batch.n_rows
            n_given += len(batch.indices)
            if len(batch.indices):
                rows = self._floats(batch.numbers)
                yield Block.checked(batch.indices, batch.ids, batch.places, rows, str(self.path))
        if not n_given:
            raise InputError(f"{self.path}: " + (f"all of its {n_read} rows failed" if n_read else "it has no rows"))

    def describe(self, indices: Collection[int]) -> dict[int, Described]:
        """Read what the output says of some rows beside their vectors, by their indices."""
        wanted = set(indices)
        found: dict[int, Described] = {}
        for batch in self._reader.batches(block_rows(self.dim), vectors=False):
            for index, id, columns in zip(batch.indices.tolist(), batch.ids, batch.columns, strict=True):
                if index in wanted:
                    found[index] = Described(id, None if columns is None else dict(columns))
            if len(found) == len(wanted):
                break
        return found

    def _floats(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Return stored numbers as what they stand for, but for a factor: bits as 1 and -1."""
        if self.dtype in BITS:
            # Of JSON, they come as floats.
            packed = numbers.astype(np.int16) + (128 if self.dtype == "binary" else 0)
            bits = np.unpackbits(packed.astype(np.uint8), axis=1, count=self.dim)
            return bits.astype(np.float32) * 2 - 1
        rows = np.asarray(numbers, np.float32)
        return rows - 128 if self.dtype == "uint8" else rows


def _check_finished(path: Path, manifest: Manifest | None) -> None:
    partial = path.with_name(path.name + ".partial")
    if manifest is None:
        unfinished = path.suffix == partial.suffix or (partial.exists() and not path.exists())
    else:
        unfinished = manifest.state != "complete"
    if unfinished:
        raise InputError(f"{path} is not finished: its run was ended; embellama bulk goes on with --resume")


def _reader(path: Path) -> Reader:
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise InputError(f"{path} is empty")
    for magic, reader in READERS.items():
        if head.startswith(magic):
            return reader(path)
    raise InputError(f"{path} is no output of embellama bulk: it is none of JSON lines, Parquet, Arrow and .npy")
