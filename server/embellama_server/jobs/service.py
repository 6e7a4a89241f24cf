"""`BatchService`: the files and batches of one server, and which batches run.

routes ── add_file, create, cancel … ──► DataFolder
                          └──► a task for each batch that has not ended: BatchRun.check, then, in turn, BatchRun.go_on
every second ──► batches whose time is over end; files whose time is over are deleted

A server that is stopped leaves everything as it is on disk, and the next one goes on there.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from embellama.errors import EmbellamaError, Unavailable
from embellama_server.jobs.folder import ITEM_BYTES, DataFolder, new_id
from embellama_server.jobs.records import BatchObject, BatchRecord, BatchStatus, FileRecord
from embellama_server.jobs.run import BatchRun, DoneLines, FindKey, Workplace
from embellama_server.jobs.upload import Upload
from embellama_server.problems import Conflict, NotFound
from embellama_server.state import ServerState

logger = logging.getLogger("embellama.jobs")

# How often it is looked whose time is over.
TICK_S = 1.0

# Batches that are computed at once, of all and of one owner; others wait, the oldest first. Each holds two parts.
MAX_RUNNING, MAX_RUNNING_OF_ONE = 8, 2

# So long files are kept if nobody says otherwise, as at OpenAI, and batches that have ended.
KEPT_S = 30 * 24 * 3600

Record = TypeVar("Record", FileRecord, BatchRecord)


class BatchService:
    """Keeps files, and runs batches; used on the event loop.

    Attributes:
        folder: Where everything is.
    """

    def __init__(
        self,
        state: ServerState,
        folder: DataFolder,
        find_key: FindKey | None = None,
        clock: Callable[[], float] = time.time,
    ):
        """Prepare for a server; nothing runs until `start`.

        Args:
            find_key: Finds what a key may do by its name, where there are keys.
            clock: Gives the time, in seconds since 1970.
        """
        self.folder = folder
        self._clock = clock
        self._disk = ThreadPoolExecutor(1, "batches-disk")
        self._place = Workplace(
            state, folder, find_key, clock, ThreadPoolExecutor(1, "batches"), self._disk, DoneLines()
        )
        self._runs: dict[str, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._all_slots = asyncio.Semaphore(MAX_RUNNING)
        self._slots: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_RUNNING_OF_ONE))
        self._ticking: asyncio.Task[None] | None = None
        self._is_stopping = False

    def start(self) -> None:
        """Go on with every batch that has not ended, in the running event loop."""
        for record in self.folder.batches.values():
            if not record.has_ended:
                self._run(record)
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Stop, and let go of the folder; what runs goes on at the next start."""
        self._is_stopping = True
        tasks = [task for _, task in self._runs.values()] + ([self._ticking] if self._ticking else [])
        for run, _ in self._runs.values():
            run.stop()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for thread in (self._place.reader, self._disk):
            await asyncio.to_thread(thread.shutdown)
        self.folder.close()

    @property
    def now(self) -> int:
        """The time, in seconds since 1970."""
        return int(self._clock())

    def files(self, owner: str | None) -> list[FileRecord]:
        """List the files of an owner, oldest first; None for all."""
        return _owned(self.folder.files, owner)

    def batches(self, owner: str | None) -> list[BatchRecord]:
        """List the batches of an owner, oldest first; None for all."""
        return _owned(self.folder.batches, owner)

    def file(self, id: str, owner: str | None) -> FileRecord:
        """Find a file; raises `NotFound`, also for those of others."""
        return _found("file", self.folder.files, id, owner)

    def batch(self, id: str, owner: str | None) -> BatchRecord:
        """Find a batch; raises `NotFound`, also for those of others."""
        return _found("batch", self.folder.batches, id, owner)

    def told(self, record: BatchRecord) -> BatchObject:
        """Describe a batch, and why it does not go on, if so."""
        running = self._runs.get(record.id)
        return record.told(running[0].trouble if running else None)

    async def add_file(self, upload: Upload, owner: str, seconds: int | None) -> FileRecord:
        """Keep a file that has come; raises `StorageFull`."""
        now = int(self._clock())
        record = FileRecord(
            id=new_id("file-"),
            owner=owner,
            filename=upload.filename or "",
            purpose="batch",
            n_bytes=upload.n_bytes,
            created_at=now,
            expires_at=now + (seconds or KEPT_S),
        )
        await self._add(self.folder.files, lambda: self.folder.keep(record, upload.path))
        upload.taken()
        self.folder.files[record.id] = record
        return record

    async def delete_file(self, record: FileRecord) -> None:
        """Delete a file; raises `Conflict` while a batch reads it."""
        readers = [batch.id for batch in self.folder.batches.values() if batch.input_file_id == record.id]
        for id in readers:
            if not self.folder.batches[id].has_ended:
                raise Conflict(f"{record.id} is being read by {id}; cancel that first", "file_id")
        await self._forget(self.folder.files, record)

    async def create(self, record: BatchRecord) -> BatchRecord:
        """Begin with a batch; raises `StorageFull`."""
        await self._add(self.folder.batches, lambda: self.folder.save(record))
        self.folder.batches[record.id] = record
        self._run(record)
        return record

    async def cancel(self, record: BatchRecord) -> BatchRecord:
        """Compute nothing more of a batch; lines that are done are kept. One that is being cancelled stays so.

        Raises:
            Conflict: It has ended.
        """
        if record.status == "finalizing" or (record.has_ended and record.status != "cancelled"):
            raise Conflict(f"{record.id} is {record.status}, so there is nothing to cancel", "batch_id")
        if record.status not in ("cancelling", "cancelled"):
            record = await self._stopped(record.id)
            if not record.has_ended and record.status != "finalizing":
                times = {**record.times, "cancelling": int(self._clock())}
                record = msgspec.structs.replace(record, status="cancelling", times=times)
                await self._on_disk(lambda: self.folder.save(record))
                self.folder.batches[record.id] = record
            self._run(record)
        return record

    @property
    def n_lines(self) -> tuple[int, int]:
        """Lines that were done since the start: those that were answered, and those that failed."""
        return self._place.n_lines.completed, self._place.n_lines.failed

    def counts(self) -> Mapping[BatchStatus, int]:
        """Count the batches in each status."""
        counts: dict[BatchStatus, int] = defaultdict(int)
        for record in self.folder.batches.values():
            counts[record.status] += 1
        return counts

    async def _stopped(self, id: str) -> BatchRecord:
        """End a batch's run, once what it writes is on disk; return how far it came."""
        if id in self._runs:
            run, task = self._runs.pop(id)
            run.stop()
            task.cancel()
            await asyncio.wait([task])
            await self._on_disk(lambda: None)  # after what was being written
        return self.folder.batches[id]

    def _run(self, record: BatchRecord) -> None:
        if record.id in self._runs:  # another request has begun it
            return
        run = BatchRun(record, self._place)
        task = asyncio.create_task(self._to_its_end(run))
        self._runs[record.id] = run, task
        task.add_done_callback(lambda task: self._ended(record.id, task))

    def _ended(self, id: str, task: "asyncio.Task[None]") -> None:
        if id in self._runs and self._runs[id][1] is task:
            del self._runs[id]

    async def _to_its_end(self, run: BatchRun) -> None:
        try:
            await run.check()
            if run.computes:
                async with self._slots[run.record.owner], self._all_slots:
                    await run.go_on()
            await run.go_on()
        except Exception:
            logger.exception("unexpected error in %s", run.record.id)
            await run.give_up("internal_error", "internal error")
            await run.go_on()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.expire()
            except Exception:
                logger.exception("unexpected error")

    async def expire(self) -> None:
        """End batches whose time is over, and delete what is kept no longer."""
        now = self._clock()
        for batch in [each for each in self.folder.batches.values() if each.status == "in_progress"]:
            if now >= batch.expires_at and batch.id in self._runs:
                run, _ = self._runs[batch.id]
                if not run.is_expiring:
                    record = await self._stopped(batch.id)
                    if not record.has_ended:
                        self._run(record)
        used = {batch.input_file_id for batch in self.folder.batches.values() if not batch.has_ended}
        for file in list(self.folder.files.values()):
            if file.expires_at is not None and now >= file.expires_at and file.id not in used:
                await self._forget(self.folder.files, file)
        for batch in list(self.folder.batches.values()):
            if batch.has_ended and now >= batch.expires_at + KEPT_S:
                await self._forget(self.folder.batches, batch)

    async def _add(self, kept: dict[str, Record], work: Callable[[], None]) -> None:
        """Write one more file or batch to disk, if there may be one more."""
        self.folder.reserve_item(kept)
        try:
            await self._on_disk(work)
        except EmbellamaError:
            self.folder.release(ITEM_BYTES)
            raise

    async def _forget(self, kept: dict[str, Record], record: Record) -> None:
        if kept.pop(record.id, None):
            await self._on_disk(lambda: self.folder.forget(record))
            self.folder.release(ITEM_BYTES + (record.n_bytes if isinstance(record, FileRecord) else 0))

    async def _on_disk(self, work: Callable[[], None]) -> None:
        if self._is_stopping:
            raise Unavailable("the server is shutting down")
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._disk, work))


def _owned(kept: Mapping[str, Record], owner: str | None) -> list[Record]:
    return [record for record in kept.values() if owner is None or record.owner == owner]


def _found(what: str, kept: Mapping[str, Record], id: str, owner: str | None) -> Record:
    record = kept.get(id)
    if record is None or owner not in (None, record.owner):
        raise NotFound(f"there is no {what} {id[:100]!r}", f"{what}_id")
    return record
