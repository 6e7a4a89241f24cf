"""Inputs: what a job names, folders as the documents in them, and the rows of all one after another.

paths ── inputs_of: folders, files looked at ──► Input … ── rows_of: Reader, Chunker, RowMaker ──► (Row, Position)
"""

import os
from collections.abc import Callable, Iterator, Sequence

import msgspec

from embellama.bulk.detect import detect
from embellama.bulk.documents.chunks import Chunker
from embellama.bulk.documents.folder import DOCUMENTS, Folder
from embellama.bulk.documents.records import COLUMNS
from embellama.bulk.encodings import encoding_of
from embellama.bulk.files import Identity, Source
from embellama.bulk.job import BulkJob
from embellama.bulk.readers import reader_of
from embellama.bulk.rows import Position, Read, Row, RowMaker
from embellama.errors import ConfigError, InputError


class Input(msgspec.Struct, frozen=True):
    """An input: how it is read, and what tells it from others; standard input has no identity."""

    source: Source
    identity: Identity | None


def inputs_of(job: BulkJob, known: Sequence[Input], note: Callable[[str], None]) -> list[Input]:
    """Look at the inputs of a job; those that are `known` are read as they were then.

    Args:
        job: The job.
        known: Inputs of an earlier run.
        note: Called with what the user is to be told.

    Raises:
        InputError: One cannot be read, is empty or has another format.
        ConfigError: The job names an encoding that Python does not know, or chunks of what is no document.
    """
    found: list[Input] = []
    sources = {each.source.path: each.source for each in known}
    for path in job.inputs:
        if os.path.isdir(path):
            found += _documents(path, job, sources, note)
        else:
            found.append(Input(sources.get(path) or detect(path, job), _identity(path)))
    for each in found:
        if job.chunk_tokens is not None and not each.source.is_document:
            raise ConfigError(
                f"chunk_tokens is of documents, and {each.source.path} is {each.source.format}; "
                "--format documents reads a file as one text"
            )
    return found


def makers_of(job: BulkJob, inputs: Sequence[Input]) -> list[RowMaker]:
    """Make a maker for the rows of each input, one for all documents; raises as `RowMaker` does."""
    makers: dict[tuple[tuple[str, ...], str], RowMaker] = {}
    found = []
    for each in inputs:
        kind = (COLUMNS, "id") if each.source.is_document else (each.source.columns, "")
        if kind not in makers:
            makers[kind] = RowMaker(job, *kind)
        found.append(makers[kind])
    return found


def rows_of(
    job: BulkJob, inputs: Sequence[Input], makers: Sequence[RowMaker], chunker: Chunker | None, start: Position
) -> Iterator[tuple[Row, Position]]:
    """Read rows from a place on, each with the place after it."""
    index, at, chunk = start.row, start.at, start.chunk
    stop = float("inf") if job.limit is None else job.offset + job.limit
    for number in range(start.source, len(inputs)):
        maker = makers[number]
        records = reader_of(inputs[number].source).records(at, maker.columns)
        reads = chunker.reads(records, at, chunk) if chunker else (Read(*each) for each in records)
        for read in reads:
            if index >= stop:
                return
            index += 1
            if index > job.offset:
                yield maker.row(index - 1, read), Position(number, read.at, index, read.chunk)
        at = chunk = 0


def share_of(job: BulkJob, inputs: Sequence[Input], position: Position) -> float | None:
    """Return which share of the inputs was read; None if that is not known."""
    if job.limit is not None:
        return min(1.0, (position.row - job.offset) / job.limit)
    size = reader_of(inputs[position.source].source).size
    if size is None and len(inputs) == 1:
        return None
    return (position.source + (position.at / size if size else 0.0)) / len(inputs)


def _documents(path: str, job: BulkJob, sources: dict[str, Source], note: Callable[[str], None]) -> Iterator[Input]:
    """Look at the documents in a folder; what is in them is not looked at before they are read."""
    if job.format not in ("auto", "documents"):
        raise InputError(f"{path} is a folder, which has documents, but the format is {job.format}")
    folder = Folder.of(path)
    if told := folder.told(path):
        note(told)
    encoding = encoding_of(b"", job.encoding) if job.encoding else ""
    for document in folder.documents:
        format = DOCUMENTS[os.path.splitext(document)[1].lower()]
        source = sources.get(document) or Source(document, format, encoding="" if format == "pdf" else encoding)
        yield Input(source, _identity(document))


def _identity(path: str) -> Identity | None:
    try:
        return Identity.of(path) if path != "-" else None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
