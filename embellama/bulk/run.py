"""Run a job: rows in, vectors out, from where an earlier run was ended.

inputs ── a thread: reader, RowMaker, parts_of ──► a queue of one part ──► BulkBackend ──► Writer ──► Output
                                                                                                        │
                                             Manifest: where to go on ◄── once the part is on disk ◄────╯

While a part is computed, the one before is written and the next ones are read: about five are held, whatever the input.
A run that is ended at any moment, also by losing power, leaves a manifest that says how much of the output counts. What
comes after that is cut off, and computed again in the same parts.
"""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from embellama.bulk.backend import BulkBackend, Embedded, Outcome
from embellama.bulk.backends import backend_of
from embellama.bulk.detect import detect
from embellama.bulk.files import Identity
from embellama.bulk.job import BulkJob
from embellama.bulk.manifest import Counts, Input, Manifest
from embellama.bulk.output import output_of
from embellama.bulk.progress import Log
from embellama.bulk.readers import reader_of
from embellama.bulk.rows import Part, Position, Row, RowMaker, parts_of
from embellama.bulk.writers import writer_of
from embellama.config import EngineConfig
from embellama.remote.config import RemoteConfig


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did.

    Attributes:
        output: The file that was written.
        counts: All rows and tokens, those of runs that it went on with included.
        resumed_at: Rows that were there already.
        seconds: How long this run took.
    """

    output: str
    counts: Counts
    resumed_at: int
    seconds: float

    @property
    def failure_rate(self) -> float:
        """The share of rows that failed."""
        return self.counts.failed / self.counts.rows if self.counts.rows else 0.0


def run(job: BulkJob, config: EngineConfig | RemoteConfig, progress: Log) -> Summary:
    """Run a job to its end with the model of `config`, or with the servers.

    Raises:
        ConfigError: The job cannot be done as asked: its options, its columns, an output that is there, or a run that
            cannot be gone on with.
        InputError: An input cannot be read.
        Unavailable: No server answers.
        OSError: The output cannot be written; what was is kept.
    """
    started = time.monotonic()
    job = job.checked()
    output = output_of(job)
    earlier = output.earlier()
    inputs = _inputs(job, earlier)
    makers = [RowMaker(job, each.source.columns) for each in inputs]
    facts = earlier.model if earlier else {}
    with (
        progress,
        contextlib.closing(output),
        contextlib.closing(backend_of(config, job.embed_options, facts)) as backend,
    ):
        asked = Manifest(
            options=job.fixed_options(),
            model=backend.facts(),
            inputs=inputs,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if earlier:
            earlier.check_same(asked)
        manifest = earlier or asked
        before, seconds = manifest.counts, manifest.seconds
        writer = writer_of(job, backend.dim)
        output.open(writer, manifest)
        if manifest.state == "running":
            read = parts_of(_rows(job, inputs, makers, manifest.position), job)
            with _read_ahead(read) as parts:
                for part, outcomes in _computed(parts, backend):
                    manifest = msgspec.structs.replace(
                        manifest,
                        counts=manifest.counts + _counts(part, outcomes),
                        position=part.end,
                        seconds=round(seconds + time.monotonic() - started, 3),
                    )
                    output.append(writer.part(part.rows, outcomes), manifest)
                    progress.update(manifest.counts - before, _share(job, inputs, part.end))
        output.finish(manifest)
    took = round(time.monotonic() - started, 3)
    return Summary(output=job.output, counts=manifest.counts, resumed_at=before.rows, seconds=took)


def _inputs(job: BulkJob, earlier: Manifest | None) -> list[Input]:
    """Look at the inputs; one that an earlier run looked at is read as it was then."""
    known = {each.source.path: each.source for each in earlier.inputs} if earlier else {}
    found = []
    for path in job.inputs:
        identity = Identity.of(path) if path != "-" else None
        found.append(Input(known.get(path) or detect(path, job), identity))
    return found


def _rows(
    job: BulkJob, inputs: Sequence[Input], makers: Sequence[RowMaker], start: Position
) -> Iterator[tuple[Row, Position]]:
    """Read rows from a place on, each with the place after it."""
    index, at = start.row, start.at
    stop = float("inf") if job.limit is None else job.offset + job.limit
    for number in range(start.source, len(inputs)):
        maker = makers[number]
        for record, after in reader_of(inputs[number].source).records(at, maker.columns):
            if index >= stop:
                return
            index += 1
            if index > job.offset:
                yield maker.row(index - 1, record), Position(number, after, index)
        at = 0


@contextlib.contextmanager
def _read_ahead(parts: Iterable[Part]) -> Iterator[Iterator[Part]]:
    """Read parts in a thread, one or two ahead of those that are taken."""
    ready: queue.Queue[Part | BaseException | None] = queue.Queue(1)
    stopped = threading.Event()

    def put(item: Part | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def read() -> None:
        try:
            for part in parts:
                put(part)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, it must reach the run
            put(error)

    def taken() -> Iterator[Part]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    # A daemon: it may be waiting for standard input, and nobody for it.
    thread = threading.Thread(target=read, name="bulk-reader", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()


class _Submitted(NamedTuple):
    """A part that is being computed.

    part: The part.
    places: For each row the number of its text; -1 if it has none.
    outcomes: Those of its texts.
    """

    part: Part
    places: list[int]
    outcomes: "Future[list[Outcome]]"

    def result(self) -> list[Outcome]:
        """Wait, and return the outcome of each row."""
        outcomes = self.outcomes.result()
        return [
            row.error if row.error is not None else outcomes[place]
            for row, place in zip(self.part.rows, self.places, strict=True)
        ]


def _computed(parts: Iterable[Part], backend: BulkBackend) -> Iterator[tuple[Part, list[Outcome]]]:
    """Compute parts one after another; while one is taken, the next is being computed."""
    submitted: _Submitted | None = None
    for part in itertools.chain(parts, [None]):
        outcomes = submitted.result() if submitted else []
        following = _submit(part, backend) if part else None
        if submitted:
            yield submitted.part, outcomes
        submitted = following


def _submit(part: Part, backend: BulkBackend) -> _Submitted:
    """Submit the texts of a part, equal ones once."""
    numbers: dict[str, int] = {}
    places = [-1 if row.text is None else numbers.setdefault(row.text, len(numbers)) for row in part.rows]
    return _Submitted(part, places, backend.submit(list(numbers)))


def _counts(part: Part, outcomes: Sequence[Outcome]) -> Counts:
    embedded = [outcome for outcome in outcomes if isinstance(outcome, Embedded)]
    return Counts(
        rows=len(outcomes),
        failed=len(outcomes) - len(embedded),
        skipped=part.n_skipped,
        tokens=round(sum(each.mean_tokens if each.n_tokens is None else each.n_tokens for each in embedded)),
        cut=sum(bool(each.n_cut) for each in embedded),
    )


def _share(job: BulkJob, inputs: Sequence[Input], position: Position) -> float | None:
    """Return which share of the inputs was read; None if that is not known."""
    if job.limit is not None:
        return min(1.0, (position.row - job.offset) / job.limit)
    size = reader_of(inputs[position.source].source).size
    return None if size is None else (position.source + position.at / size) / len(inputs)
