"""What goes wrong in worker processes: each function is called with the model of one, before it computes anything.

EMBELLAMA_TEST_WORKER_HOOK=tests.faults.hook:aborts ──► worker.run ──► aborts(model)

A text is marked by the token of "poison". Every batch after the canary is written to the file FAULTS_BATCHES, a line
for each with the number of its texts, so that tests can count what was computed.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embellama.batch import Batch, Rows
from embellama.errors import ModelError
from embellama.model import EmbeddingModel

Encode = Callable[[Batch, int | None], Rows]

# What a leaking worker loses with every batch.
LEAK_BYTES = 16 << 20


def counts(model: EmbeddingModel) -> None:
    """Nothing goes wrong."""
    _replace(model, lambda batch, encode: encode(batch, None))


def slow(model: EmbeddingModel) -> None:
    """A batch takes a fifth of a second more."""

    def run(batch: Batch, encode: Encode) -> Rows:
        time.sleep(0.2)
        return encode(batch, None)

    _replace(model, run)


def aborts(model: EmbeddingModel) -> None:
    """A marked text ends the process, as a failed assertion in llama.cpp does."""
    _on_mark(model, os.abort)


def hangs(model: EmbeddingModel) -> None:
    """A marked text is computed for ever."""

    def hang() -> None:
        while True:
            time.sleep(0.01)

    _on_mark(model, hang)


def raises(model: EmbeddingModel) -> None:
    """A batch with a marked text is not computed."""

    def fail() -> None:
        raise ModelError("the hook failed this batch")

    _on_mark(model, fail)


def not_a_number(model: EmbeddingModel) -> None:
    """llama.cpp gives vectors that are not numbers for a whole batch with a marked text."""
    _spoil(model, np.nan)


def zeros(model: EmbeddingModel) -> None:
    """llama.cpp gives vectors of zeros for a whole batch with a marked text."""
    _spoil(model, 0.0)


def fails_once(model: EmbeddingModel) -> None:
    """llama.cpp gives no numbers for a marked text, but does on the context that is made after the first failure."""
    _spoil(model, np.nan, contexts=1)


def drifts(model: EmbeddingModel) -> None:
    """Once there is a file FAULTS_DRIFT, the process that sees it first gives wrong vectors, and no other does."""
    mark = Path(os.environ["FAULTS_DRIFT"])
    me = str(os.getpid())

    def run(batch: Batch, encode: Encode) -> Rows:
        rows = encode(batch, None)
        if mark.exists() and mark.read_text() in ("", me):
            mark.write_text(me)
            return np.roll(rows, 1, axis=1)
        return rows

    _replace(model, run)


def leaks(model: EmbeddingModel) -> None:
    """Every batch takes memory and keeps it."""
    kept: list[bytearray] = []

    def run(batch: Batch, encode: Encode) -> Rows:
        kept.append(bytearray(os.urandom(1)) * LEAK_BYTES)
        return encode(batch, None)

    _replace(model, run)


def dies(model: EmbeddingModel) -> None:
    """The process ends as soon as it has loaded, if the file FAULTS_DIE is there."""
    if Path(os.environ["FAULTS_DIE"]).exists():
        os._exit(3)


def _replace(model: EmbeddingModel, run: Callable[[Batch, Encode], Rows]) -> None:
    """Put `run` in the place of `model.encode`, and write down every batch."""
    encode: Encode = model.encode
    record = os.open(os.environ["FAULTS_BATCHES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    canary: list[bytes] = []

    def replaced(batch: Batch, n_threads: int | None = None) -> Rows:
        tokens = batch.tokens.tobytes()
        if not canary:
            canary.append(tokens)
        if tokens != canary[0]:
            os.write(record, b"%d\n" % len(batch.lengths))
        return run(batch, lambda batch, _: encode(batch, n_threads))

    model.encode = replaced  # type: ignore[method-assign]


def _mark_of(model: EmbeddingModel) -> int:
    return int(model.tokenizer.encode(["poison"]).tokens[0][1])


def _on_mark(model: EmbeddingModel, fault: Callable[[], None]) -> None:
    mark = _mark_of(model)

    def run(batch: Batch, encode: Encode) -> Rows:
        if mark in batch.tokens:
            fault()
        return encode(batch, None)

    _replace(model, run)


def _spoil(model: EmbeddingModel, value: float, contexts: int = 0) -> None:
    """Have llama.cpp's vectors be `value` where there is a marked text; with `contexts`, on so many contexts only."""
    mark = _mark_of(model)
    kind = type(model._context)
    assert kind is not type(None)
    compute = kind.run  # type: ignore[union-attr]
    spoilt: set[int] = set()

    def run(self: object, batch: Batch, n_threads: int) -> Rows:
        vectors: Rows = compute(self, batch, n_threads)  # type: ignore[arg-type]
        if mark not in batch.tokens or (contexts and len(batch.lengths) == 1 and len(spoilt - {id(self)}) >= contexts):
            return vectors
        if len(batch.lengths) == 1:
            spoilt.add(id(self))
        return np.full_like(vectors, value)

    kind.run = run  # type: ignore[union-attr, method-assign]
    _replace(model, lambda batch, encode: encode(batch, None))
