"""`TextDocument`: a text file that is one record. A place in it is a number of records, 0 or 1."""

from collections.abc import Iterator, Sequence
from typing import IO, ClassVar

from embellama.bulk.documents.records import COLUMNS, document_record
from embellama.bulk.encodings import encoding_of
from embellama.bulk.files import Source
from embellama.bulk.rows import Record, RowError

# A document of more bytes fails. More would cost memory: some ten times as much, while it is cut into chunks.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class DocumentTooLarge(RowError):
    """A document has more bytes than are held at once."""

    code: ClassVar[str | None] = "document_too_large"


class TextDocument:
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
