"""Records of documents, all with the same columns.

A record's id is the document's path with what of it the record is, as in links to PDFs: ``notes/a.pdf#page=3``, and of
a chunk ``notes/a.pdf#page=3&chunk=2``, both counted from 1.
"""

from typing import Any

# `page` and `chunk` are None where there are none.
COLUMNS = ("id", "path", "page", "chunk", "text")


def document_record(path: str, text: str | None, *, page: int | None = None) -> dict[str, Any]:
    """Return the record of a document, or of one of its pages; without a text, of one that cannot be read."""
    id = path if page is None else f"{path}#page={page}"
    record = {"id": id, "path": path, "page": page, "chunk": None}
    return record if text is None else {**record, "text": text}


def chunk_record(record: dict[str, Any], chunk: int, text: str) -> dict[str, Any]:
    """Return the record of a chunk of another record."""
    id = f"{record['id']}{'#' if record['page'] is None else '&'}chunk={chunk}"
    return {**record, "id": id, "chunk": chunk, "text": text}
