"""Run a job: rows in, vectors out, from where an earlier run was ended.

inputs ── a thread: rows_of, parts_of ──► one part ahead ──► BulkBackend ──► Writer ──► Output
                                                                                                        │
                                             Manifest: where to go on ◄── once the part is on disk ◄────╯

While a part is computed, the one before is written and the next one is read: three are held, whatever the input; on a
cluster, `BulkBackend.n_parts` and two.
A run that is ended at any moment, also by losing power, leaves a manifest that says how much of the output counts. What
comes after that is cut off, and computed again in the same parts.
"""

import contextlib
import importlib.metadata
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from embellama.bulk.backend import BulkBackend, Embedded, Outcome, Text
from embellama.bulk.backends import backend_of
from embellama.bulk.durable import check_place
from embellama.bulk.inputs import Input, inputs_of, makers_of, rows_of, share_of
from embellama.bulk.job import BulkJob
from embellama.bulk.manifest import Counts, Manifest
from embellama.bulk.output import output_of
from embellama.bulk.progress import Log
from embellama.bulk.rows import Part, parts_of
from embellama.bulk.writers import problem_of, writer_of
from embellama.config import EngineConfig
from embellama.errors import ConfigError
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
    check_place("summary", job.summary)
    if isinstance(config, RemoteConfig):
        _check_remote(job, config)
    inputs = inputs_of(job, earlier.inputs if earlier else [], progress.note)
    makers = makers_of(job, inputs)
    facts = earlier.model if earlier else {}
    with (
        progress,
        contextlib.closing(output),
        contextlib.closing(backend_of(config, job.embed_options, facts)) as backend,
    ):
        asked = _asked(job, inputs, backend)
        if earlier:
            earlier.check_same(asked)
        manifest = earlier or asked
        before, seconds = manifest.counts, manifest.seconds
        chunker = backend.chunker(job)
        writer = writer_of(job, backend.dim)
        output.open(writer, manifest)
        if manifest.state == "running":
            read = parts_of(rows_of(job, inputs, makers, chunker, manifest.position), job)
            with _read_ahead(read) as parts:
                for part, outcomes in _computed(parts, backend):
                    manifest = msgspec.structs.replace(
                        manifest,
                        counts=manifest.counts + _counts(part, outcomes),
                        position=part.end,
                        seconds=round(seconds + time.monotonic() - started, 3),
                    )
                    output.append(writer.part(part.rows, outcomes), manifest)
                    progress.update(manifest.counts - before, share_of(job, inputs, part.end))
        output.finish(manifest)
    took = round(time.monotonic() - started, 3)
    return Summary(output=job.output, counts=manifest.counts, resumed_at=before.rows, seconds=took)


def _check_remote(job: BulkJob, config: RemoteConfig) -> None:
    """Refuse what other servers cannot do."""
    if job.chunk_tokens is not None and not config.tokenizer_path:
        raise ConfigError(
            "chunk_tokens needs the model's own tokens: it goes with --model-path, or with --url and --tokenizer-path"
        )
    if job.late_chunking:
        raise ConfigError("late_chunking needs vectors of tokens, which servers do not give: it goes with --model-path")


def _asked(job: BulkJob, inputs: list[Input], backend: BulkBackend) -> Manifest:
    """Return the manifest of a run that has done nothing yet."""
    return Manifest(
        options=job.fixed_options(),
        model=backend.facts(),
        packages=_packages(job, inputs),
        inputs=inputs,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _packages(job: BulkJob, inputs: Sequence[Input]) -> dict[str, str]:
    """Return the versions of the packages beside the model's that the output's bytes depend on."""
    names = {"pdf": "pypdf", "parquet": "pyarrow", "arrow": "pyarrow"}
    kinds = {each.source.format for each in inputs} | {Path(job.output).suffix.lower().removeprefix(".")}
    return {name: importlib.metadata.version(name) for name in sorted({names[kind] for kind in kinds & names.keys()})}


@contextlib.contextmanager
def _read_ahead(parts: Iterable[Part]) -> Iterator[Iterator[Part]]:
    """Read parts in a thread, one ahead of those that are taken."""
    ready: queue.SimpleQueue[Part | BaseException | None] = queue.SimpleQueue()
    wanted = threading.Semaphore(1)
    stopped = threading.Event()

    def read() -> None:
        try:
            iterator = iter(parts)
            part: Part | None
            while wanted.acquire() and not stopped.is_set():
                ready.put(part := next(iterator, None))
                if part is None:
                    return
        except BaseException as error:  # whatever it is, it must reach the run
            ready.put(error)

    def taken() -> Iterator[Part]:
        while (item := ready.get()) is not None:
            wanted.release()
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
        wanted.release()


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
    """Compute parts, and give them in order; while one is taken, those after it are being computed."""
    submitted: deque[_Submitted] = deque()
    for part in parts:
        first = submitted.popleft() if len(submitted) == backend.n_parts else None
        outcomes = first.result() if first else []
        submitted.append(_submit(part, backend))
        if first:
            yield first.part, outcomes
    for first in submitted:
        yield first.part, first.result()


def _submit(part: Part, backend: BulkBackend) -> _Submitted:
    """Submit the texts of a part, equal ones once."""
    numbers: dict[Text, int] = {}
    texts = [row.late or row.text for row in part.rows]
    places = [-1 if text is None else numbers.setdefault(text, len(numbers)) for text in texts]
    return _Submitted(part, places, backend.submit(list(numbers)))


def _counts(part: Part, outcomes: Sequence[Outcome]) -> Counts:
    embedded = [outcome for outcome in outcomes if isinstance(outcome, Embedded)]
    failures = Counter(problem_of(outcome).code for outcome in outcomes if not isinstance(outcome, Embedded))
    return Counts(
        rows=len(outcomes),
        failed=failures.total(),
        skipped=part.n_skipped,
        tokens=round(sum(each.mean_tokens if each.n_tokens is None else each.n_tokens for each in embedded)),
        cut=sum(bool(each.n_cut) for each in embedded),
        failures=dict(failures),
    )
