"""`BatchRun`: one batch, from wherever it is to its end.

validating ── lines are checked ──► in_progress ── part after part ──► finalizing ── files in their place ──► completed
     └──► failed: errors name lines      │ cancelled, or its time is over: what was done is kept
                                         └──► cancelled, expired; failed, if its key or its model has gone

While a part is computed, the next one is with the workers too, and the one before is written. A part is on disk, then
the batch's record counts it. So after any end of the process, at most two parts are computed again, in the same way.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import msgspec

from embellama.backend import ANYONE, Caller
from embellama.deadline import Deadline
from embellama.errors import ConfigError, EmbellamaError, ModelNotFound
from embellama.keys import KeyEntry
from embellama_server.dialects import openai, rerank
from embellama_server.dialects.base import Dialect
from embellama_server.jobs.compute import ModelAndCaller, ModelChanged, PartComputer
from embellama_server.jobs.folder import ITEM_BYTES, DataFolder
from embellama_server.jobs.lines import LineCheck, NumberedLine, lines_from
from embellama_server.jobs.outputs import BatchOutputs, output_records
from embellama_server.jobs.parts import Outcome, Part, WrittenPart, read_part, undone_lines, written
from embellama_server.jobs.records import BatchRecord, BatchStatus, KeptPrompts, LineError, Progress
from embellama_server.problems import NotAllowed, StorageFull
from embellama_server.state import ServerState

logger = logging.getLogger("embellama.jobs")

# What lines may ask for.
ENDPOINTS: dict[str, Dialect[Any, Any]] = {
    "/v1/embeddings": openai.OpenAIEmbeddings(),
    "/v1/rerank": rerank.JinaRerank(),
}

# Parts at the back end at once: while one is written, workers have the next.
PARTS_AHEAD = 2

# Lines that are checked at once, and the pause after them: so a file of 50,000 lines is checked in seconds, and the
# event loop, which shares Python's lock with whoever checks, gets it within a millisecond or two.
CHECKED_LINES, CHECK_PAUSE_S = 100, 0.005

# When it is tried again where the disk is full.
FULL_RETRY_S = 30.0

FindKey = Callable[[str], KeyEntry | None]

Result = TypeVar("Result")


class GivenUp(Exception):
    """A batch cannot go on."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.error: LineError = {"code": code, "message": message, "param": None, "line": None}


class DoneLines:
    """How many lines were answered, and how many failed, in all batches since the start."""

    def __init__(self) -> None:
        self.completed = self.failed = 0


class Workplace(NamedTuple):
    """What all runs share.

    state: The models.
    folder: The files.
    find_key: Finds what a key may do by its name; None without keys.
    clock: Gives the time, in seconds since 1970.
    reader: A thread that reads and writes lines.
    disk: Another one for the disk: what is done there is done in order.
    n_lines: Counts lines that are done.
    """

    state: ServerState
    folder: DataFolder
    find_key: FindKey | None
    clock: Callable[[], float]
    reader: Executor
    disk: Executor
    n_lines: DoneLines


class BatchRun:
    """One run of a batch; used on the event loop.

    Attributes:
        record: The batch as it is on disk.
        trouble: Why it does not go on now, if it does not.
        is_expiring: Whether it knows that its time is over.
    """

    def __init__(self, record: BatchRecord, place: Workplace):
        self._place = place
        self._dialect = ENDPOINTS[record.endpoint]
        self._work = Deadline(float("inf"), place.state.config.timeout_ms)
        self.record = record
        self.trouble: LineError | None = None
        self.is_expiring = False

    @property
    def computes(self) -> bool:
        """Whether there is something to compute, and time for it."""
        return self.record.status == "in_progress" and self._place.clock() < self.record.expires_at

    async def check(self) -> None:
        """Check every line of a batch that is new, so that what is wrong is told at once."""
        if self.record.status == "validating":
            await self._persistently(self._check)

    async def go_on(self) -> None:
        """Bring the batch to its end; where the disk is full, wait until it is not."""
        while not self.record.has_ended:
            await self._persistently(self._next_step)

    async def give_up(self, code: str, message: str) -> None:
        """Have the batch fail; what was done is kept."""
        await self._save(errors=[*self.record.errors, GivenUp(code, message).error], status="finalizing")

    def stop(self) -> None:
        """Let a thread that reads lines read no more."""
        self._work.at = 0.0

    async def _persistently(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step, again and again while there is no room for what it writes."""
        while True:
            try:
                await step()
                self.trouble = None
                return
            except StorageFull as error:
                self.trouble = {"code": "storage_full", "message": str(error), "param": None, "line": None}
                logger.warning("%s waits: %s", self.record.id, error)
                await asyncio.sleep(FULL_RETRY_S)
            except GivenUp as error:
                logger.warning("%s ends: %s", self.record.id, error)
                await self.give_up(error.error["code"], error.error["message"])

    async def _next_step(self) -> None:
        record = self.record
        if record.status == "finalizing":
            await self._finish("failed" if record.errors else "completed")
        elif record.status == "cancelling":
            await self._finish("cancelled")
        elif self._place.clock() >= record.expires_at:
            await self._expire()
        else:
            with contextlib.suppress(ModelChanged):  # then go on with what has its name
                await self._compute()

    async def _check(self) -> None:
        found = LineCheck(self.record.endpoint)
        lines = self._lines(Progress())

        def check_some() -> bool:
            some = list(itertools.islice(lines, CHECKED_LINES))
            for line in some:
                found.add(line)
            return len(some) == CHECKED_LINES and not found.is_hopeless

        more = True
        while more:
            more = await self._reading(check_some)
            await asyncio.sleep(CHECK_PAUSE_S)
        found.end()
        errors = found.errors
        kept: dict[str, Any] = {}
        if not errors:
            try:
                model = self._find(found.model).model
                kept["batch_limits"] = (model.config.max_batch_tokens, model.config.max_batch_size)
                kept["prompts"] = KeptPrompts.of(model.jobs.prompts)
            except GivenUp as error:
                errors = [{**error.error, "param": "body.model", "line": 1}]
        status: BatchStatus = "failed" if errors else "in_progress"
        await self._save(errors=errors, total=found.total, model=found.model, status=status, **kept)

    async def _compute(self) -> None:
        """Compute what is left, and write it."""
        lines = self._lines(self.record.progress)
        found = self._find(self.record.model)
        model, config = found.model, found.model.config
        if self.record.prompts:  # else it is of an earlier version of embellama
            model = model.with_prompts(self.record.prompts.restored())
        limits = self.record.batch_limits
        if limits[0] > config.max_batch_tokens or limits[1] > config.max_batch_size:
            limits = (config.max_batch_tokens, config.max_batch_size)  # more than workers take now
        computer = PartComputer(found, lambda: self._find(self.record.model), limits)
        running: deque[tuple[Part, asyncio.Task[list[Outcome]]]] = deque()
        more = True
        async with self._outputs() as outputs:
            try:
                while more or running:
                    if more and len(running) < PARTS_AHEAD:
                        self._find(self.record.model)  # it, or the key, may have gone
                        part = await self._reading(read_part, lines, self._dialect, model, self._work)
                        if part:
                            running.append((part, asyncio.create_task(computer.outcomes(part))))
                        more = part is not None
                    else:
                        part, computed = running[0]
                        made = await self._reading(written, part, await computed, self._dialect, model)
                        running.popleft()
                        await self._append(outputs, made, part.at, part.number)
            finally:
                for _, task in running:
                    task.cancel()
        await self._save(status="finalizing")

    async def _expire(self) -> None:
        """Write an error for each line whose turn did not come."""
        self.is_expiring = True
        if self.record.total:  # else no line was read
            error: LineError = {
                "code": "batch_expired",
                "message": f"the batch was not done within its completion_window of {self.record.window}",
                "param": None,
                "line": None,
            }
            lines = self._lines(self.record.progress)
            async with self._outputs() as outputs:
                while made := await self._reading(undone_lines, lines, error):
                    await self._append(outputs, *made)
        await self._finish("expired")

    async def _finish(self, status: BatchStatus) -> None:
        """Put what was written in its place."""
        folder = self._place.folder
        kept = output_records(self.record, int(self._place.clock()))
        await self._writing(lambda: BatchOutputs(folder, self.record.id).put(kept))
        for each in kept:
            if each.n_bytes and each.id not in folder.files:
                folder.files[each.id] = each
                folder.n_bytes += ITEM_BYTES
        output, errors = (each.id if each.n_bytes else None for each in kept)
        await self._save(status=status, output_file_id=output, error_file_id=errors, prompts=None)
        done = self.record.progress
        logger.info("%s is %s: %d lines done, %d failed", self.record.id, status, done.completed, done.failed)

    def _find(self, name: str | None) -> ModelAndCaller:
        """Find the model of a batch, and its caller; raises `GivenUp` if it may not be used, or is not there."""
        place, owner = self._place, self.record.owner
        caller = ANYONE._replace(background=True)
        allowed: Collection[str] = ()
        if place.find_key:
            if (entry := place.find_key(owner)) is None:
                raise GivenUp(
                    "invalid_api_key", f"the API key {owner!r}, which made the batch, is no longer known here"
                )
            caller, allowed = Caller(entry.name, entry.share_cache, background=True), entry.models
        try:
            return ModelAndCaller(place.state.model(name, allowed), caller)
        except ModelNotFound as error:
            raise GivenUp("model_not_found", str(error)) from None
        except NotAllowed as error:
            raise GivenUp("not_allowed", str(error)) from None

    def _lines(self, progress: Progress) -> Iterator[NumberedLine]:
        return lines_from(self._place.folder.path(self.record.input_file_id), progress.at, progress.line)

    @contextlib.asynccontextmanager
    async def _outputs(self) -> AsyncIterator[BatchOutputs]:
        """Open the outputs where the record says that they end."""
        outputs = BatchOutputs(self._place.folder, self.record.id)
        lengths = self.record.progress.lengths
        try:
            try:
                await self._writing(lambda: outputs.open(lengths))
            except ConfigError as error:
                raise GivenUp("output_lost", str(error)) from None
            yield outputs
        finally:
            self._place.disk.submit(outputs.close)  # after what is being written; before anything that comes next

    async def _append(self, outputs: BatchOutputs, made: WrittenPart, at: int, number: int) -> None:
        """Add a part to the outputs, then count it."""
        folder, done = self._place.folder, self.record.progress
        n_output, n_errors = len(made.output), len(made.errors)
        progress = Progress(
            at=at,
            line=number,
            completed=done.completed + made.n_completed,
            failed=done.failed + made.n_failed,
            n_tokens=done.n_tokens + made.n_tokens,
            lengths=(done.lengths[0] + n_output, done.lengths[1] + n_errors),
        )
        record = msgspec.structs.replace(self.record, progress=progress)

        def append() -> None:
            outputs.append(made.output, made.errors)
            folder.save(record)

        folder.reserve(n_output + n_errors)
        try:
            await self._writing(append, record)
        except EmbellamaError:
            folder.release(n_output + n_errors)
            raise
        self._place.n_lines.completed += made.n_completed
        self._place.n_lines.failed += made.n_failed

    async def _save(self, **changes: Any) -> None:
        """Change the record, on disk first."""
        times = self.record.times
        if status := changes.get("status"):
            times = {**times, status: int(self._place.clock())}
        record = msgspec.structs.replace(self.record, times=times, **changes)
        await self._writing(lambda: self._place.folder.save(record), record)

    async def _reading(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._place.reader, work, *arguments)

    async def _writing(self, work: Callable[[], None], record: BatchRecord | None = None) -> None:
        """Do work on the disk, and take a record as written once it is; also if nobody waits for it any more."""

        def take(future: "asyncio.Future[None]") -> None:
            if record and not future.cancelled() and not future.exception():
                self.record = self._place.folder.batches[record.id] = record

        future = asyncio.get_running_loop().run_in_executor(self._place.disk, work)
        future.add_done_callback(take)
        await asyncio.shield(future)
