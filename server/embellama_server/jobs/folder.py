"""`DataFolder`: the folder in which files and batches are kept, and how full it may be.

DATA/lock                   held by the one process that owns the folder
DATA/files/ID               a file's bytes; ID.json its record, written last; ID.partial an output that grows
DATA/batches/ID.json        a batch's record: written again with each part, once the part is on disk
DATA/uploads/               files that are still coming; what is left there of an earlier process is deleted

A file counts once its record is there, a part once the batch's record says so: whatever is there beside them is what a
process was at when it ended, and is deleted or written again. Who calls decides on which thread: all here may block.
"""

import contextlib
import errno
import fcntl
import hashlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from embellama.bulk.durable import put_in_place, write_whole
from embellama.errors import ConfigError
from embellama_server.jobs.records import BatchRecord, FileRecord
from embellama_server.problems import StorageFull

# What a file or a batch takes beside its bytes: its record, and the ends of blocks. So very small ones are bounded too.
ITEM_BYTES = 8192

# Most files, and most batches: their records are in memory, too, about a kilobyte each.
MAX_ITEMS = 10_000

# What the system calls a full disk, a user's share of it that is used up, a file that may grow no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Record = TypeVar("Record", FileRecord, BatchRecord)


class DataFolder:
    """Files and batches on disk.

    Attributes:
        files: Records of files, by id, in the order in which they came.
        batches: Records of batches, likewise.
        n_bytes: Bytes that all of it takes, what is still coming included.
    """

    def __init__(self, path: Path, max_bytes: int):
        """Take a folder, and clear away what an earlier process was at; raises `ConfigError`."""
        self._max_bytes = max_bytes
        self._files, self._batches, self._uploads = (path / name for name in ("files", "batches", "uploads"))
        try:
            for folder in (self._files, self._batches, self._uploads):
                folder.mkdir(0o700, parents=True, exist_ok=True)
            self._lock = open(path / "lock", "ab")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"data_dir is {str(path)!r}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ConfigError(f"data_dir is {str(path)!r}: another server uses it; each needs its own") from None
        self.files = {record.id: record for record in _records(self._files, FileRecord)}
        self.batches = {record.id: record for record in _records(self._batches, BatchRecord)}
        self._clear()
        self.n_bytes = (len(self.files) + len(self.batches)) * ITEM_BYTES
        self.n_bytes += sum(record.n_bytes for record in self.files.values())
        self.n_bytes += sum(sum(record.progress.lengths) for record in self.batches.values() if not record.has_ended)

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def reserve(self, n_bytes: int) -> None:
        """Count bytes that are about to be written; raises `StorageFull` if there may not be so many."""
        if self.n_bytes + n_bytes > self._max_bytes:
            raise StorageFull(
                f"{self.n_bytes} bytes of files are kept, and {n_bytes} more are needed; the limit is "
                f"{self._max_bytes}: delete files that are not needed"
            )
        self.n_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        """Count bytes no more."""
        self.n_bytes -= n_bytes

    def reserve_item(self, kept: dict[str, Record]) -> None:
        """Count one more file or batch; raises `StorageFull` if there are too many."""
        if len(kept) >= MAX_ITEMS:
            raise StorageFull(f"{len(kept)} are kept, the most allowed: delete files that are not needed")
        self.reserve(ITEM_BYTES)

    def new_upload(self) -> Path:
        """Return where a file that comes is written to."""
        return self._uploads / secrets.token_hex(12)

    def path(self, file_id: str) -> Path:
        """Return where the bytes of a file are."""
        return self._files / file_id

    def keep(self, record: FileRecord, upload: Path | None = None) -> None:
        """Keep a file: put an upload that is on disk in its place, then write the record."""
        with full_disk_named():
            if upload:
                put_in_place(upload, self.path(record.id))
            write_whole(self._record_path(record), msgspec.json.encode(record))

    def forget(self, record: FileRecord | BatchRecord) -> None:
        """Delete a file or a batch: its record first."""
        self._record_path(record).unlink(missing_ok=True)
        if isinstance(record, FileRecord):
            self.path(record.id).unlink(missing_ok=True)

    def save(self, record: BatchRecord) -> None:
        """Write a batch's record, so that it is on disk when this returns."""
        with full_disk_named():
            write_whole(self._record_path(record), msgspec.json.encode(record))

    def _record_path(self, record: FileRecord | BatchRecord) -> Path:
        folder = self._files if isinstance(record, FileRecord) else self._batches
        return folder / f"{record.id}.json"

    def _clear(self) -> None:
        """Delete what nothing counts: uploads, files without a record that no batch goes on with."""
        open_ids = {id for batch in self.batches.values() if not batch.has_ended for id in output_ids(batch.id)}
        for file in (*self._uploads.iterdir(), *self._files.iterdir(), *self._batches.iterdir()):
            id = file.name.partition(".")[0]
            if file.suffix == ".new" or not (id in self.files or id in self.batches or id in open_ids):
                file.unlink()
        for id in [id for id in self.files if not self.path(id).exists()]:
            self.forget(self.files.pop(id))


def output_ids(batch_id: str) -> list[str]:
    """Return the ids of the files that a batch writes: always the same, so that they may be put in place twice."""
    return [f"file-{hashlib.sha256(f'{batch_id} {what}'.encode()).hexdigest()[:24]}" for what in ("output", "errors")]


def new_id(prefix: str) -> str:
    """Make an id, such as ``file-0f3b…``."""
    return prefix + secrets.token_hex(12)


@contextlib.contextmanager
def full_disk_named() -> Iterator[None]:
    """Raise `StorageFull` where the system says that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the disk is full: {error.strerror}") from None
        raise


def _records(folder: Path, kind: type[Record]) -> Iterable[Record]:
    """Read the records of a folder, oldest first; raises `ConfigError`."""
    found = []
    for file in folder.glob("*.json"):
        try:
            found.append((file.stat().st_mtime_ns, msgspec.json.decode(file.read_bytes(), type=kind)))
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from None
    return [record for _, record in sorted(found, key=lambda each: (each[1].created_at, each[0], each[1].id))]
