"""`BatchOutputs`: the two files that a batch writes, its answers and its errors.

open: cut to what the record counts ──► append: a part, on disk when it returns ──► put: the files in their place

Everything here may block, and runs in the thread for the disk.
"""

import contextlib
from collections.abc import Sequence

from embellama.bulk.durable import OutputFile, put_in_place
from embellama_server.jobs.folder import DataFolder, full_disk_named, output_ids
from embellama_server.jobs.records import BatchRecord, FileRecord

# How the two are called, in the order of `output_ids`.
NAMES = ("output", "errors")


class BatchOutputs:
    """The outputs of one batch while it runs."""

    def __init__(self, folder: DataFolder, batch_id: str):
        self._folder = folder
        self._files = [OutputFile(folder.path(id)) for id in output_ids(batch_id)]

    def open(self, lengths: Sequence[int]) -> None:
        """Go on after so many bytes of each.

        Raises:
            ConfigError: There are fewer.
            StorageFull: The disk is full.
        """
        with full_disk_named():
            for file, length in zip(self._files, lengths, strict=True):
                file.open(length)

    def append(self, *data: bytes) -> None:
        """Add bytes to each; raises `StorageFull`."""
        with full_disk_named():
            for file, added in zip(self._files, data, strict=True):
                if added:
                    file.append(added)

    def close(self) -> None:
        """Leave them as they are."""
        for file in self._files:
            with contextlib.suppress(OSError):  # what could not be written does not count
                file.close()

    def put(self, kept: Sequence[FileRecord]) -> None:
        """Put those that have bytes in their place; whatever was done of it before is not done again."""
        for file, record in zip(self._files, kept, strict=True):
            if file.partial.exists() and record.n_bytes:
                file.open(record.n_bytes)
                file.close()
                put_in_place(file.partial, file.path)
            file.partial.unlink(missing_ok=True)
            if record.n_bytes and record.id not in self._folder.files:
                self._folder.keep(record)


def output_records(record: BatchRecord, now: int) -> list[FileRecord]:
    """Describe the files that a batch has written, as they are kept from now on."""
    expires_at = None if record.output_seconds is None else now + record.output_seconds
    return [
        FileRecord(
            id=id,
            owner=record.owner,
            filename=f"{record.id}_{name}.jsonl",
            purpose="batch_output",
            n_bytes=length,
            created_at=now,
            expires_at=expires_at,
        )
        for id, length, name in zip(output_ids(record.id), record.progress.lengths, NAMES, strict=True)
    ]
