"""`Folder`: the documents below a folder, in an order that is always the same."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from embellama.errors import InputError

# Which format a document has, by its name.
DOCUMENTS = {".txt": "text", ".md": "text", ".pdf": "pdf"}


class Folder(NamedTuple):
    """What is below a folder. Hidden files and folders, and folders that are links, are not looked at.

    documents: Paths of the documents, sorted, a folder's files before those of the folders in it.
    others: How many other files there are, by the ends of their names.
    """

    documents: list[str]
    others: Counter[str]

    @classmethod
    def of(cls, path: str) -> "Folder":
        """Look into a folder.

        Raises:
            InputError: It has no documents, or a folder cannot be read.
        """
        documents: list[str] = []
        others: Counter[str] = Counter()
        for folder, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                suffix = Path(name).suffix.lower()
                if name.startswith("."):
                    continue
                if not _is_text(name):
                    others["a name that is not UTF-8"] += 1
                elif suffix in DOCUMENTS:
                    documents.append(os.path.join(folder, name))
                else:
                    others[suffix or "a name without an end"] += 1
        if not documents:
            raise InputError(f"{path} has no {', '.join(DOCUMENTS)} files")
        return cls(documents, others)

    def told(self, path: str) -> str:
        """Say which files are left out; "" if none is."""
        if not self.others:
            return ""
        kinds = ", ".join(f"{count} with {kind}" for kind, count in self.others.most_common())
        return f"{path}: files that are no documents are left out: {self.others.total()}, {kinds}"


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {error.strerror or error}") from None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
