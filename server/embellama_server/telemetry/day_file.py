"""`DayFile`: the file of one process and one day that lines are appended to, whole or not at all."""

import contextlib
import os
from pathlib import Path

from embellama.records.line import file_name


class DayFile:
    """The file that lines go to; another one each day, and a new one where it was deleted."""

    def __init__(self, folder: Path, process: str):
        self._folder, self._process = folder, process
        self._path: Path | None = None
        self._descriptor = -1
        self._n_bytes = 0  # of whole lines

    def append(self, day: str, lines: bytes) -> None:
        """Append lines to the file of a day, such as ``2026-11-27``.

        Raises:
            OSError: They cannot be written; then none of them is in the file.
        """
        self._open(self._folder / file_name(day, self._process))
        self._mend()
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # then before the next lines
                self._mend()
            raise
        self._n_bytes += len(lines)

    def close(self) -> None:
        """Close it as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = None, -1

    def _open(self, path: Path) -> None:
        if path == self._path:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(self._descriptor)):
                    return
        self.close()
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path, self._n_bytes = path, os.fstat(self._descriptor).st_size

    def _mend(self) -> None:
        """Cut off what there is of lines that could not be written whole; nobody else writes to the file."""
        if os.fstat(self._descriptor).st_size > self._n_bytes:
            os.ftruncate(self._descriptor, self._n_bytes)
