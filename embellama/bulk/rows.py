"""`Row`: one row of an input as the pipeline carries it, and how it is made of a record.

a reader's record ── Chunker, of documents ──► Read ── RowMaker: column or template, id ──► Row ── parts_of ──► Part

A record is a row's columns, or the `RowError` that says why it has none.
"""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

from embellama.bulk.job import BulkJob
from embellama.errors import ConfigError, InputError

# A part ends at so many characters, too. Fewer, and parts of long texts are too small to fill the machine; more costs
# memory: three parts are held at once.
PART_CHARACTERS = 4 * 1024 * 1024


class RowError(InputError):
    """A row of the input cannot be read; it fails, and the others go on."""

    code: ClassVar[str | None] = "invalid_row"
    #: What is known of the row all the same.
    columns: Mapping[str, Any] = MappingProxyType({})

    def of(self, columns: Mapping[str, Any]) -> Self:
        """Return this error with what is known of the row."""
        self.columns = columns
        return self


class NoText(RowError):
    """There is no text where one was looked for, such as on a page that is a picture."""

    code: ClassVar[str | None] = "no_text"


class RowTooLong(RowError):
    """A row has more bytes than are held at once."""

    code: ClassVar[str | None] = "row_too_long"


class MissingColumn(RowError):
    """A row does not have the column of the text or of the id."""

    code: ClassVar[str | None] = "missing_column"


Record = Mapping[str, Any] | RowError


class Position(NamedTuple):
    """A place between two rows of the inputs.

    source: The number of the input, or of the document.
    at: The place in it: a byte for files of lines, a row for tables, a page for documents.
    row: Rows before it in all inputs.
    chunk: Chunks before it of what is there.
    """

    source: int = 0
    at: int = 0
    row: int = 0
    chunk: int = 0


class LateChunk(NamedTuple):
    """A part of a text, to be computed with the text around it ("late chunking").

    window: The text, no longer than the model reads.
    start: The part's first character.
    stop: The character after its last.
    """

    window: str
    start: int
    stop: int


class Read(NamedTuple):
    """A record that was read.

    record: The record.
    at: The place after it, or its own if more of its chunks follow.
    chunk: Its chunks up to here; 0 if it has no more.
    late: What is computed in the place of its text.
    """

    record: Record
    at: int
    chunk: int = 0
    late: LateChunk | None = None


class Row(NamedTuple):
    """One row.

    number: Its place among the rows of all inputs, from 0.
    id: The value of its id column; None without.
    text: What is embedded; None if the row is wrong.
    error: Why it is wrong.
    columns: The columns that are written to the output, too.
    late: What is computed in the place of its text.
    """

    number: int
    id: Any
    text: str | None
    error: RowError | None
    columns: Mapping[str, Any] | None
    late: LateChunk | None = None


class Part(NamedTuple):
    """Rows that are computed, written and recorded together.

    rows: The rows.
    end: The place after them.
    n_skipped: Rows left out among them, as they are empty.
    """

    rows: Sequence[Row]
    end: Position
    n_skipped: int


class RowMaker:
    """Makes rows of records, as a job says."""

    def __init__(self, job: BulkJob, columns: Sequence[str], id_column: str = ""):
        """Prepare for records with `columns`, those of the first one, and an id in `id_column` if the job names none.

        Raises:
            ConfigError: A column that the job names is not among them, or it is not clear which has the text.
        """
        self._job = job
        self._id_column = job.id_column or id_column
        self._template = _parsed(job.template) if job.template else [("", _text_column(job, columns))]
        wanted = [name for _, name in self._template if name] + ([self._id_column] if self._id_column else [])
        for name in wanted:
            if name not in columns:
                raise ConfigError(f"there is no column {name!r}; the input has {_listed(columns)}")
        #: The columns that are read.
        self.columns: list[str] | None = None if job.keep_columns else list(dict.fromkeys(wanted))

    def row(self, index: int, read: Read) -> Row:
        """Make one row."""
        record, error = (read.record.columns, read.record) if isinstance(read.record, RowError) else (read.record, None)
        kept = record if self._job.keep_columns else None
        id = record.get(self._id_column) if self._id_column else None
        if error is not None:
            return Row(index, id, None, error, kept)
        try:
            text = "".join(literal + (_text_of(record, name) if name else "") for literal, name in self._template)
        except RowError as error:
            return Row(index, id, None, error, kept)
        return Row(index, id, text, None, kept, read.late)


def parts_of(rows: Iterable[tuple[Row, Position]], job: BulkJob) -> Iterator[Part]:
    """Group rows into parts. Where a part begins decides alone where it ends, so that a resumed run makes the same.

    A run that is ended may have computed one part that is not yet recorded, and the next one too; so each has half of
    the rows that may be computed again.
    """
    held: list[Row] = []
    n_read = n_characters = n_skipped = 0
    end = Position()
    for row, end in rows:
        n_read += 1
        if job.skip_empty and (isinstance(row.error, NoText) or (row.text is not None and not row.text.strip())):
            n_skipped += 1
        else:
            held.append(row)
            n_characters += len(row.text or "")
        if n_read >= job.part_rows // 2 or n_characters >= PART_CHARACTERS:
            yield Part(held, end, n_skipped)
            held = []
            n_read = n_characters = n_skipped = 0
    if n_read:
        yield Part(held, end, n_skipped)


def _text_column(job: BulkJob, columns: Sequence[str]) -> str:
    if job.column:
        return job.column
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return columns[0]
    raise ConfigError(f"column is missing: the input has {_listed(columns)}, and none is called text")


def _parsed(template: str) -> list[tuple[str, str]]:
    """Split a template into literals, each with the column after it."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template is {template!r}: {error}") from None
    for _, name, spec, conversion in pieces:
        if name == "" or spec or conversion:
            raise ConfigError(f"template is {template!r}; it takes column names in braces, such as {{title}}")
    return [(literal, name or "") for literal, name, _, _ in pieces]


def _text_of(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise MissingColumn(f"the row has no column {name!r}")
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise RowError(f"column {name!r} is no text: it is {type(value).__name__}")
    return str(value)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"
