"""Readers of documents: a text is one record, a PDF one for each page. A place in one is a number of records.

Source ── Document ──► (record, 1)        Source ── pdf.Pdf ──► (a page's record, the pages up to it)

A record has the columns `COLUMNS`; its id is the document's path with what of it the record is, as in links to PDFs:
``notes/a.pdf#page=3``, and of a chunk ``notes/a.pdf#page=3&chunk=2``, both counted from 1.
"""

from collections.abc import Iterator, Sequence
from typing import IO, Any, ClassVar

from embellama.bulk.encodings import encoding_of
from embellama.bulk.files import Source
from embellama.bulk.rows import Record, RowError

# The columns of documents' records; `page` and `chunk` are None where there are none.
COLUMNS = ("id", "path", "page", "chunk", "text")

# A document of more bytes fails. More would cost memory: some ten times as much, while it is cut into chunks.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class DocumentTooLarge(RowError):
    """A document has more bytes than are held at once."""

    code: ClassVar[str | None] = "document_too_large"


def document_record(path: str, text: str | None, *, page: int | None = None) -> dict[str, Any]:
    """Return the record of a document, or of one of its pages; without a text, of one that cannot be read."""
    id = path if page is None else f"{path}#page={page}"
    record = {"id": id, "path": path, "page": page, "chunk": None}
    return record if text is None else {**record, "text": text}


def chunk_record(record: dict[str, Any], chunk: int, text: str) -> dict[str, Any]:
    """Return the record of a chunk of another record."""
    id = f"{record['id']}{'#' if record['page'] is None else '&'}chunk={chunk}"
    return {**record, "id": id, "chunk": chunk, "text": text}


class Document:
    """Reads a text as a whole."""

    def __init__(self, source: Source):
        self._source = source

    @property
    def size(self) -> int | None:
        return 1

    def columns(self, stream: IO[bytes] | None) -> list[str]:
        return [*COLUMNS]

    def records(self, at: int, columns: Sequence[str] | None) -> Iterator[tuple[Record, int]]:
        if at > 0:
            return
        path = self._source.path
        try:
            yield document_record(path, self._text()), 1
        except RowError as error:
            yield error.of(document_record(path, None)), 1

    def _text(self) -> str:
        path = self._source.path
        with self._source.open() as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise DocumentTooLarge(f"{path} has more than {MAX_DOCUMENT_BYTES} bytes, which is the limit")
        encoding = self._source.line_encoding or encoding_of(data)
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except UnicodeError as error:
            raise RowError(f"{path} is not {encoding}: {error}") from None
