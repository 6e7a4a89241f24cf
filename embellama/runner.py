"""Run jobs: make a job of texts, submit it, wait for its rows, make the result of them.

texts ──► Jobs ──► Job ──► Backend.submit ══► the model's threads (`pool.py`)
                                                  │
result ◄── Job.finish ◄── rows, in a future ◄═════╛

A caller waits in one of three ways: blocked, in a coroutine, or for a stream of which some slices are computed ahead.
"""

import asyncio
import contextlib
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import numpy as np

from embellama.backend import Backend, Progress
from embellama.batch import Rows
from embellama.errors import EmbeddingFailed, EmbellamaError, InputError, InvalidOption
from embellama.halves import by_halves
from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.pool import Unloading, check_may_wait
from embellama.results import Embeddings, Outcomes

Result = TypeVar("Result")

#: Makes a job for a model. It may be called again, if the model is unloaded before the job is submitted.
MakeJob = Callable[[Jobs], Job[Result]]

# Slices of a stream that are at work at once, so that some are while one is taken out.
N_SLICES = 4


class ComputedModel(Protocol):
    """A model, wherever it is computed."""

    jobs: Jobs

    @property
    def backend(self) -> Backend[Future[Rows]]:
        """Computes the rows of its jobs."""


class Models(Protocol):
    """Models by name: a `ModelRegistry`, or a model that is alone."""

    def get(self, name: str | None) -> ComputedModel:
        """Return a model; None stands for the default one."""


class JobRunner:
    """Runs jobs on models, for callers on any thread."""

    def __init__(self, models: Models):
        """Prepare to run jobs on `models`."""
        self._models = models

    def run(self, model: str | None, make_job: MakeJob[Result], progress: Progress | None = None) -> Result:
        """Run one job, wait, and return its result."""
        while True:
            job, future = self._submit(model, make_job, progress)
            with contextlib.suppress(Unloading):  # it waited for another request's rows, in vain
                try:
                    return _finished(job, future)
                except BaseException:
                    future.cancel()  # interrupted while waiting: what is queued need not run
                    raise

    async def arun(self, model: str | None, make_job: MakeJob[Result], progress: Progress | None = None) -> Result:
        """Run one job, for asyncio. Cancelling drops what is still queued."""
        given_up = threading.Event()
        submitted: list[Future[Rows]] = []

        def submit() -> tuple[Job[Result], Future[Rows]]:
            job, future = self._submit(model, make_job, progress)
            submitted.append(future)
            if given_up.is_set():  # nobody saw the future in time to cancel it
                future.cancel()
            return job, future

        try:
            # In a thread: a model may have to be loaded, and tokenizing megabytes takes its time.
            while True:
                job, future = await asyncio.to_thread(submit)
                with contextlib.suppress(Unloading):  # as in `run`
                    try:
                        rows = await asyncio.wrap_future(future)
                    except EmbeddingFailed as error:
                        raise job.named(error) from None
                    return job.finish(rows)
        except asyncio.CancelledError:
            given_up.set()
            for future in submitted:
                future.cancel()
            raise

    def run_each(self, model: str | None, texts: Iterable[str], options: EmbedOptions) -> Outcomes:
        """Embed texts; those at fault are left out, and nobody else fails because of them."""
        given = read_once(texts)()
        try:
            embeddings = self.run(model, lambda jobs: jobs.encode(given, options))
            return Outcomes(np.arange(len(embeddings.n_tokens)), embeddings, {})
        except (InputError, EmbeddingFailed) as error:
            if error.index is None:
                raise
        listed = list(given)
        readable = by_halves(listed, lambda part: self._read(model, part, options))
        good = [i for i, error in enumerate(readable) if error is None]
        errors = {i: error for i, error in enumerate(readable) if error is not None}
        # Together, so that texts that are alike are computed together; again by halves where the model fails.
        made = by_halves(good, lambda part: self._parts(model, [listed[i] for i in part], options))
        errors |= {i: each for i, each in zip(good, made, strict=True) if isinstance(each, EmbellamaError)}
        parts = [each for each in made if isinstance(each, Embeddings)]
        if not parts:
            parts = [self.run(model, lambda jobs: jobs.encode([], options))]
        joined = Embeddings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return Outcomes(np.array([i for i in good if i not in errors], np.int64), joined, errors)

    def _read(self, model: str | None, texts: Sequence[str], options: EmbedOptions) -> list[None]:
        check_may_wait()
        self._models.get(model).jobs.encode(texts, options)
        return [None] * len(texts)

    def _parts(self, model: str | None, texts: Sequence[str], options: EmbedOptions) -> list[Embeddings]:
        """Embed texts; return each one's vector as embeddings of one text."""
        found = self.run(model, lambda jobs: jobs.encode(texts, options))
        return [Embeddings(*(array[i : i + 1] for array in found)) for i in range(len(texts))]

    def stream(
        self, model: str | None, texts: Iterable[str], n_ahead: int, options: EmbedOptions
    ) -> Iterator[Embeddings]:
        """Embed texts slice by slice, `n_ahead` texts ahead of what is taken out.

        Yields:
            The embeddings of some texts, in the order given. An error counts texts from the stream's beginning.
        """
        if isinstance(texts, str):
            raise InputError("texts is one str, not an iterable of them; to embed one text, call embed")
        if n_ahead < 1:
            raise InvalidOption("n_ahead", f"is {n_ahead}; it must be at least 1")
        n_slices = min(N_SLICES, n_ahead)
        at_work: deque[tuple[int, MakeJob[Embeddings], Job[Embeddings], Future[Rows]]] = deque()
        stream, start = iter(texts), 0
        try:
            while True:
                while len(at_work) < n_slices and (part := list(itertools.islice(stream, n_ahead // n_slices))):
                    make_job = functools.partial(_encode, part, options)
                    with _counted_from(start):
                        job, future = self._submit(model, make_job, None)
                    at_work.append((start, make_job, job, future))
                    start += len(part)
                if not at_work:
                    return
                first, make_again, job, future = at_work[0]
                with _counted_from(first):
                    try:
                        embeddings = _finished(job, future)
                    except Unloading:  # as in `run`
                        embeddings = self.run(model, make_again)
                yield embeddings
                at_work.popleft()
        finally:
            for *_, future in at_work:
                future.cancel()

    def _submit(
        self, model: str | None, make_job: MakeJob[Result], progress: Progress | None
    ) -> tuple[Job[Result], "Future[Rows]"]:
        check_may_wait()
        while True:
            loaded = self._models.get(model)
            job = make_job(loaded.jobs)
            # Unloaded meanwhile: to make room, to be loaded again, or for good, which the next round finds out.
            with contextlib.suppress(Unloading):
                return job, loaded.backend.submit(job.tokens, kind=job.kind, progress=progress)


def read_once(texts: Iterable[str]) -> Callable[[], Iterable[str]]:
    """Return a function that reads `texts` on its first call, and returns what it read on later ones.

    A `MakeJob` may be called again, but an iterator can be read only once.
    """
    return functools.cache(lambda: texts if isinstance(texts, str) else list(texts))


def _encode(texts: list[str], options: EmbedOptions, jobs: Jobs) -> Job[Embeddings]:
    return jobs.encode(texts, options)


def _finished(job: Job[Result], future: "Future[Rows]") -> Result:
    try:
        # With a time, though for ever: once Polars has computed, SIGINT does not end a wait that has none (its handler
        # has it begun again: SA_RESTART).
        rows = future.result(threading.TIMEOUT_MAX)
    except EmbeddingFailed as error:
        raise job.named(error) from None
    return job.finish(rows)


@contextlib.contextmanager
def _counted_from(start: int) -> Iterator[None]:
    """Make errors count texts from a stream's beginning."""
    try:
        yield
    except EmbellamaError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        raise type(error)(index + start, *error.args[1:]) from None
