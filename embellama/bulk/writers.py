"""Writers of outputs: the bytes of each part, one behind another, and what makes the finished file of them.

rows, outcomes ── JsonLinesWriter ──► lines ─────────────────────────────────────────────► OUT.jsonl
               ── TableWriter ──────► a record batch of an Arrow stream ── a row group ──► OUT.parquet, OUT.arrow
               ── NumpyWriter ──────► rows of numbers ── a header before them ───────────► OUT.npy
                                      lines without vectors ─────────────────────────────► OUT.npy.rows.jsonl

A part's bytes follow from the part alone, and the finished file from all bytes.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.bulk.backend import Embedded, Outcome
from embellama.bulk.extra import arrow, extra
from embellama.bulk.job import BulkJob
from embellama.bulk.rows import Row
from embellama.errors import EmbellamaError
from embellama.options import EmbedOptions

# What holds the bits of a vector, for each `dtype` of bits.
BIT_NUMBERS = {"binary": "int8", "ubinary": "uint8"}

# What an .npy file has before its numbers: NumPy pads to a multiple of 64, and any shape fits.
NPY_HEADER_BYTES = 128


class Problem(msgspec.Struct, frozen=True):
    """Why a row failed."""

    code: str
    message: str


class OutputRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of JSONL output.

    Attributes:
        index: The row's number in the input, from 0.
        id: The value of its id column.
        status: ``ok``, or ``failed``: then `error` says why, and there is no vector.
        embedding: Its vector.
        n_tokens: Tokens computed, where that is known.
        n_cut: Tokens left out, where that is known.
        error: Why it failed.
        columns: The input's columns, where they are kept.
    """

    index: int
    id: Any
    status: str
    embedding: list[float] | msgspec.UnsetType = msgspec.UNSET
    n_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n_cut: int | msgspec.UnsetType = msgspec.UNSET
    error: Problem | msgspec.UnsetType = msgspec.UNSET
    columns: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Writer(Protocol):
    """Writes one kind of output."""

    def paths(self, output: Path) -> list[Path]:
        """Return the files it makes; the first is `output`."""

    def begin(self) -> list[bytes]:
        """Return what each file begins with."""

    def part(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[bytes]:
        """Return what a part adds to each file."""

    def finish(self, partial: Path) -> Path:
        """Make the finished first file of all that was written, and return where it lies; it may be called again."""


def writer_of(job: BulkJob, dim: int) -> Writer:
    """Return the writer for the name of a job's output."""
    suffix = Path(job.output).suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return TableWriter(job, dim, parquet=suffix == ".parquet")
    return NumpyWriter(job, dim) if suffix == ".npy" else JsonLinesWriter(job)


class JsonLinesWriter:
    """Writes a line for each row."""

    def __init__(self, job: BulkJob, *, vectors: bool = True):
        self._keep_columns, self._vectors = job.keep_columns, vectors
        self._encode = msgspec.json.Encoder(enc_hook=str).encode

    def paths(self, output: Path) -> list[Path]:
        return [output]

    def begin(self) -> list[bytes]:
        return [b""]

    def part(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[bytes]:
        # Not `encode_lines`: msgspec 0.22 never frees the iterator that it is given.
        lines = [self._encode(self._line(row, outcome)) for row, outcome in zip(rows, outcomes, strict=True)]
        return [b"\n".join([*lines, b""])]

    def finish(self, partial: Path) -> Path:
        return partial

    def _line(self, row: Row, outcome: Outcome) -> OutputRow:
        columns = dict(row.columns or {}) if self._keep_columns else msgspec.UNSET
        if isinstance(outcome, Embedded):
            embedding = outcome.vector.tolist() if self._vectors else msgspec.UNSET
            n_tokens, n_cut = (msgspec.UNSET if n is None else n for n in (outcome.n_tokens, outcome.n_cut))
            return OutputRow(row.number, row.id, "ok", embedding, n_tokens, n_cut, columns=columns)
        return OutputRow(row.number, row.id, "failed", error=problem_of(outcome), columns=columns)


def problem_of(error: EmbellamaError) -> Problem:
    """Describe an error of one row."""
    message = str(error).replace(f"text {getattr(error, 'index', None)}", "the text", 1)
    return Problem(error.code or "invalid_request_error", message)


class TableWriter:
    """Writes a record batch for each part; in Parquet each is a row group."""

    def __init__(self, job: BulkJob, dim: int, *, parquet: bool):
        self._pa, self._parquet = arrow(), parquet
        self._numbers, self._width = numbers_of(job, dim)
        self._keep_columns = job.keep_columns
        pa = self._pa
        self._schema = pa.schema(
            [
                ("index", pa.int64()),
                ("id", pa.string()),
                ("status", pa.string()),
                *outcome_fields(self._numbers, self._width),
                *([("columns", pa.string())] if job.keep_columns else []),
            ]
        )

    def paths(self, output: Path) -> list[Path]:
        return [output]

    def begin(self) -> list[bytes]:
        return [self._schema.serialize().to_pybytes()]

    def part(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[bytes]:
        columns: dict[str, Any] = {
            "index": [row.number for row in rows],
            "id": [None if row.id is None else _plain(row.id) for row in rows],
            "status": ["ok" if isinstance(outcome, Embedded) else "failed" for outcome in outcomes],
            **outcome_columns(outcomes, self._numbers, self._width),
        }
        if self._keep_columns:
            columns["columns"] = [_plain(dict(row.columns or {})) for row in rows]
        batch = self._pa.record_batch(columns, schema=self._schema)
        return [batch.serialize().to_pybytes()]

    def finish(self, partial: Path) -> Path:
        finished = partial.with_suffix(".finished")
        with self._pa.memory_map(str(partial)) as source, open(finished, "wb") as file:
            with self._pa.ipc.open_stream(source) as batches, self._writer(file) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        return finished

    def _writer(self, file: BinaryIO) -> Any:
        if self._parquet:
            return extra("pyarrow.parquet", "Parquet files").ParquetWriter(file, self._schema)
        return self._pa.ipc.new_file(file, self._schema)


def outcome_fields(numbers: np.dtype[Any], width: int) -> list[tuple[str, Any]]:
    """Return the names and Arrow types of `outcome_columns`."""
    pa = arrow()
    return [
        ("embedding", pa.list_(pa.from_numpy_dtype(numbers), width)),
        ("n_tokens", pa.int32()),
        ("n_cut", pa.int32()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]


def outcome_columns(outcomes: Sequence[Outcome], numbers: np.dtype[Any], width: int) -> dict[str, Any]:
    """Return outcomes as Arrow arrays by name, ``(n,)`` each; a text that failed has an error, and null in the others.

    Args:
        outcomes: The outcomes.
        numbers: Type of a vector's numbers, as `numbers_of` says.
        width: Numbers of a vector, likewise.
    """
    pa = arrow()
    problems = [None if isinstance(outcome, Embedded) else problem_of(outcome) for outcome in outcomes]
    values = pa.array(stacked(outcomes, numbers, width).reshape(-1))
    failed = pa.array([problem is not None for problem in problems], pa.bool_())
    columns = {
        "embedding": pa.FixedSizeListArray.from_arrays(values, width, mask=failed),
        "n_tokens": [outcome.n_tokens if isinstance(outcome, Embedded) else None for outcome in outcomes],
        "n_cut": [outcome.n_cut if isinstance(outcome, Embedded) else None for outcome in outcomes],
        "error_code": [problem and problem.code for problem in problems],
        "error_message": [problem and problem.message for problem in problems],
    }
    types = dict(outcome_fields(numbers, width))
    return {name: pa.array(each, types[name]) if isinstance(each, list) else each for name, each in columns.items()}


class NumpyWriter:
    """Writes a matrix with a row of numbers for each row, and beside it a file of lines that say what each is of.

    A row that failed is NaN, or 0 in whole numbers.
    """

    def __init__(self, job: BulkJob, dim: int):
        self._numbers, self._width = numbers_of(job, dim)
        self._lines = JsonLinesWriter(job, vectors=False)

    def paths(self, output: Path) -> list[Path]:
        return [output, output.with_name(output.name + ".rows.jsonl")]

    def begin(self) -> list[bytes]:
        return [self._header(0), b""]

    def part(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[bytes]:
        return [stacked(outcomes, self._numbers, self._width).tobytes(), *self._lines.part(rows, outcomes)]

    def finish(self, partial: Path) -> Path:
        n_bytes = partial.stat().st_size - NPY_HEADER_BYTES
        with open(partial, "r+b") as file:
            file.write(self._header(n_bytes // (self._numbers.itemsize * self._width)))
            file.flush()
            os.fsync(file.fileno())
        return partial

    def _header(self, n_rows: int) -> bytes:
        header = io.BytesIO()
        described = {"descr": self._numbers.str, "fortran_order": False, "shape": (n_rows, self._width)}
        np.lib.format.write_array_header_1_0(header, described)
        assert header.tell() == NPY_HEADER_BYTES
        return header.getvalue()


def numbers_of(job: EmbedOptions, dim: int) -> tuple[np.dtype[Any], int]:
    """Return the type of a vector's numbers, and how many there are."""
    bits = job.dtype in BIT_NUMBERS
    return np.dtype(BIT_NUMBERS.get(job.dtype, job.dtype)), -(-dim // 8) if bits else dim


def stacked(outcomes: Sequence[Outcome], numbers: np.dtype[Any], width: int) -> NDArray[Any]:
    """Return the vectors of outcomes, ``(n, width)``; those that failed are NaN, or 0 in whole numbers."""
    matrix = np.full((len(outcomes), width), np.nan if numbers.kind == "f" else 0, numbers)
    for row, outcome in zip(matrix, outcomes, strict=True):
        if isinstance(outcome, Embedded):
            row[:] = outcome.vector
    return matrix


def _plain(value: object) -> str:
    """Write a value as a text: one that is none, as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
