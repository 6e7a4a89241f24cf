"""Find out how an input is read: its compression, format, encoding, and a CSV's dialect.

the first bytes ── magic ──► gzip, zstd, Parquet, Arrow, PDF
                └─ decoded ──► JSON lines ── the file's name, or rows of as many columns ──► CSV, or plain lines

Content wins over names; names decide where content does not tell.
"""

import csv
import io
import itertools
from pathlib import Path
from typing import IO

import msgspec

from embellama.bulk.encodings import encoding_of
from embellama.bulk.files import Source, decompressed, standard_input
from embellama.bulk.job import BulkJob
from embellama.bulk.readers import reader_of
from embellama.errors import InputError

# So much of an input is looked at. Less may show no letter beyond ASCII; more is read again by a run that goes on.
HEAD_BYTES = 64 * 1024

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
PDF = b"%PDF-"
NAMES = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "lines", ".md": "lines",
}  # fmt: skip
DELIMITERS = ",;\t|"


def detect(path: str, job: BulkJob) -> Source:
    """Look at the beginning of an input.

    Raises:
        InputError: It cannot be read, or is empty.
        ConfigError: The job names an encoding that does not exist.
    """
    try:
        head, compression = _head(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise InputError(f"{path} is empty")
    table = next((name for magic, name in TABLES.items() if head.startswith(magic)), "")
    is_pdf = head.startswith(PDF) or (not table and _suffix(path) == ".pdf")
    if job.format == "documents" or (job.format == "auto" and is_pdf):
        return _document(path, "pdf" if is_pdf else "text", compression, job)
    if table or job.format in ("parquet", "arrow"):
        source = Source(path, table or job.format, compression, "")
    else:
        encoding = encoding_of(head, job.encoding)
        text = head.decode(encoding, "replace").removeprefix("\ufeff")
        format = job.format if job.format != "auto" else _format(text, path)
        source = Source(path, format, compression, encoding)
        if format == "csv":
            delimiter = _delimiter(text)
            first = next(csv.reader(io.StringIO(text), delimiter=delimiter), [])
            header = _is_header(first, job) if job.header is None else job.header
            source = msgspec.structs.replace(source, delimiter=delimiter, header=header)
    return msgspec.structs.replace(source, columns=_columns(source, head))


def _document(path: str, format: str, compression: str, job: BulkJob) -> Source:
    if path == "-":
        raise InputError("standard input is not read as a document; name a file")
    encoding = encoding_of(b"", job.encoding) if job.encoding else ""
    return Source(path, format, compression, encoding)


def _columns(source: Source, head: bytes) -> tuple[str, ...]:
    if not source.encoding:
        return tuple(reader_of(source).columns(None))
    beginning = head if source.encoding == source.line_encoding else head.decode(source.encoding, "replace").encode()
    with io.BytesIO(beginning) if source.path == "-" else source.open() as stream:
        return tuple(reader_of(source).columns(stream))


def _head(path: str) -> tuple[bytes, str]:
    """Return the first bytes of an input, decompressed, and its compression."""
    if path == "-":
        head = standard_input().peek(HEAD_BYTES)[:HEAD_BYTES]
    else:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    compression = next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), "")
    if compression:
        stream: IO[bytes] = io.BufferedReader(io.BytesIO(head)) if path == "-" else open(path, "rb")  # noqa: SIM115
        with decompressed(stream, compression, path) as plain:
            head = plain.read1(HEAD_BYTES)  # what is there: of standard input, perhaps no more
    return head, compression


def _format(text: str, path: str) -> str:
    line = next(filter(None, map(str.strip, text.splitlines())), "")
    by_name = NAMES.get(_suffix(path), "")
    if line[:1] in ("{", '"'):
        try:
            if isinstance(msgspec.json.decode(line), dict | str) and (line[0] == "{" or by_name != "csv"):
                return "jsonl"
        except msgspec.DecodeError:
            pass
    return by_name or ("csv" if _n_columns(text, _delimiter(text)) > 1 else "lines")


def _suffix(path: str) -> str:
    name = Path(path)
    return (Path(name.stem) if name.suffix in (".gz", ".zst") else name).suffix.lower()


def _delimiter(text: str) -> str:
    """Return the delimiter that gives nearly all rows as many columns, the most if there are several."""
    return max(DELIMITERS, key=lambda delimiter: _n_columns(text, delimiter))


def _n_columns(text: str, delimiter: str) -> int:
    """Return how many columns the first row has; 0 if it is the only one, or if too few others have as many."""
    try:
        rows = list(itertools.islice(csv.reader(io.StringIO(text), delimiter=delimiter), 20))
    except csv.Error:
        return 0
    counts = [len(row) for row in rows if row]
    # A ragged row, or one that is cut at the end of what is looked at, does not hide the others.
    return counts[0] if len(counts) > 1 and counts.count(counts[0]) >= 0.75 * len(counts) else 0


def _is_header(first: list[str], job: BulkJob) -> bool:
    """Whether a first row names columns: one that the job names, or else no cell is empty, twice there or a number."""
    named = job.column or job.id_column
    if named in first or named.isdigit():  # columns without names are called 0, 1, …
        return named in first
    cells = [cell.strip() for cell in first]
    return all(cells) and len({*cells}) == len(cells) and not any(cell.replace(".", "", 1).isdigit() for cell in cells)
