"""`Pdf`: the pages of a PDF, by pypdf."""

import logging
from collections.abc import Iterator, Sequence
from typing import IO, Any, ClassVar

from embellama.bulk.documents.records import COLUMNS, document_record
from embellama.bulk.extra import extra
from embellama.bulk.files import Source
from embellama.bulk.rows import NoText, Record, RowError
from embellama.errors import InputError


class InvalidDocument(RowError):
    """A PDF, or a page of it, cannot be read."""

    code: ClassVar[str | None] = "invalid_document"


class EncryptedDocument(RowError):
    """A PDF cannot be read without a password."""

    code: ClassVar[str | None] = "encrypted_document"


class Pdf:
    """Reads a record from each page.

    A page without text fails, and so does, as one row, a file that cannot be read at all.
    """

    def __init__(self, source: Source):
        if source.path == "-" or source.compression:
            raise InputError(f"{source.path}: a PDF is read from a plain file only")
        self._path = source.path

    @property
    def size(self) -> int | None:
        return None

    def columns(self, stream: IO[bytes] | None) -> list[str]:
        return [*COLUMNS]

    def records(self, at: int, columns: Sequence[str] | None) -> Iterator[tuple[Record, int]]:
        with open(self._path, "rb") as file:
            try:
                pages = self._pages(file)
            except RowError as error:
                if at == 0:
                    yield error.of(document_record(self._path, None)), 1
                return
            for number in range(at, len(pages)):
                try:
                    yield document_record(self._path, self._text(pages, number), page=number + 1), number + 1
                except RowError as error:
                    yield error.of(document_record(self._path, None, page=number + 1)), number + 1

    def _pages(self, file: IO[bytes]) -> Sequence[Any]:
        pypdf = extra("pypdf", "PDFs")
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of faults that it mends
        try:
            reader = pypdf.PdfReader(file)
            # Many need none to be read, but one to be changed.
            readable = not reader.is_encrypted or reader.decrypt("")
            n_pages = len(reader.pages) if readable else 0
        except Exception as error:  # a file can be broken in ways that pypdf does not foresee
            raise InvalidDocument(f"{self._path} cannot be read: {_reason(error)}") from None
        if not readable:
            raise EncryptedDocument(f"{self._path} is encrypted, and not readable without its password")
        if not n_pages:
            raise InvalidDocument(f"{self._path} has no pages")
        return reader.pages  # type: ignore[no-any-return]

    def _text(self, pages: Sequence[Any], number: int) -> str:
        try:
            text: str = pages[number].extract_text()
        except Exception as error:  # as above
            raise InvalidDocument(f"{self._path}: page {number + 1} cannot be read: {_reason(error)}") from None
        if not text.strip():
            raise NoText(f"{self._path}: page {number + 1} has no text; it may be a picture")
        # What is not Unicode in the file comes as halves of surrogate pairs.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _reason(error: Exception) -> str:
    return f"{error}" or type(error).__name__
