"""Memory does not grow with the rows: what was computed and written is freed, without Python looking for circles."""

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from embellama import EngineConfig
from embellama.bulk.backend import Embedded, EngineBackend
from embellama.bulk.job import BulkJob
from embellama.bulk.rows import Row
from embellama.bulk.writers import writer_of
from embellama.options import EmbedOptions


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npy"])
def test_vectors_that_were_written_are_freed(suffix: str) -> None:
    vector = np.ones(4, np.float32)
    ref = weakref.ref(vector)
    row, outcome = Row(0, None, "red", None, None), Embedded(vector, 1, 0)
    writer_of(BulkJob(output=f"out.{suffix}"), 4).part([row], [outcome])
    del vector, outcome
    assert ref() is None


def test_vectors_that_were_taken_are_freed(tiny_path: str) -> None:
    backend = EngineBackend(EngineConfig(model_path=tiny_path, compute="llama"), EmbedOptions(), {})
    first, other = backend.submit(["red"]), backend.submit(["blue"])
    [outcome] = first.result()
    assert isinstance(outcome, Embedded)
    other.result()
    ref = weakref.ref(outcome.vector.base)
    del first, outcome
    assert ref() is None
    backend.close()
