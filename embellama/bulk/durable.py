"""`OutputFile`: a file that grows by whole parts, each on disk before it counts, and is put in place when it is done.

bytes of a part ── append, sync ──► OUT.partial ── finish ──► OUT
                                      ▲ cut to the length that was recorded, when a run goes on
"""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from embellama.errors import ConfigError


def check_place(what: str, path: str | Path) -> None:
    """Raise `ConfigError` unless a file can be written at a path; an empty one, and "-", is none."""
    if not path or path == "-":
        return
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{what} is {path}: {'cannot write into' if folder.is_dir() else 'there is no folder'} {folder}"
        )
    if Path(path).is_dir():
        raise ConfigError(f"{what} is {path}, which is a folder")


class OutputFile:
    """A file on its way.

    Attributes:
        path: Where it will be.
        partial: Where it grows.
    """

    def __init__(self, path: Path):
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._file: BinaryIO | None = None

    @property
    def length(self) -> int:
        """Bytes written."""
        assert self._file
        return self._file.tell()

    def open(self, length: int) -> None:
        """Begin it anew, with length 0, or go on after so many bytes.

        Raises:
            ConfigError: Another process is writing it, or it has fewer bytes than were recorded.
            OSError: It cannot be written.
        """
        self._file = open(self.partial, "ab")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.partial} is being written by another process") from None
        if (there := os.fstat(self._file.fileno()).st_size) < length:
            raise ConfigError(f"{self.partial} has {there} bytes; {length} were written: it was changed")
        self._file.truncate(length)
        self._file.seek(length)

    def append(self, data: bytes) -> None:
        """Write bytes behind all others, and wait until they are on disk."""
        assert self._file
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it as it is."""
        if self._file:
            self._file.close()


def put_in_place(source: Path, path: Path) -> None:
    """Rename a file that is on disk, and wait until its new name is, too."""
    os.replace(source, path)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that, whatever happens, it is the old one or the new one."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(new, path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
