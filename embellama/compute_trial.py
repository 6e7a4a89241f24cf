"""Compare our kernels with llama.cpp on a model: ``python -m embellama.compute_trial FILE POOLING``.

embellama.gguf.compute ──► this process ──► a `Choice` as JSON on standard output

A process of its own, because kernels that went wrong may end it.
"""

import sys
import time
from typing import Any

import msgspec
import numpy as np

from embellama import kernels
from embellama.batch import Batch, RowKind, Rows
from embellama.config import EngineConfig
from embellama.gguf.compute import NO_GAIN, Choice
from embellama.gguf.header import Header
from embellama.gguf.loading import load_weights
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from embellama.model import EmbeddingModel

# Lengths of the texts in the batches that are compared: one alone, some alike, some that are not, a single token.
CANARIES = ([7], [16] * 12, [3, 90, 41, 1, 57], [1])

# Vectors of one model are nearer to each other than this: where one or the other rounds numbers to bfloat16, and where
# only llama.cpp rounds some to float16, as it always does (0.99997 in the worst of tests/test_architectures.py). Wrong
# ones are further off.
LEAST_COSINE_BF16, LEAST_COSINE = 0.999, 0.9999

# The first instruction set this much faster than llama.cpp is taken: those after it are slower.
ENOUGH = 1.25

# A smaller advantage is noise.
MARGIN = 1.03

# Seconds for which an instruction set is measured, and rounds.
MEASURE_S, N_ROUNDS = 1.0, 5


def main(path: str, pooling: Any) -> None:
    """Print the choice for the model at `path`."""
    config = EngineConfig(
        model_path=path, pooling=pooling, max_batch_tokens=192, n_threads=1, compute="llama"
    ).checked()
    rounds = "bf16" in Header(path).tensors.values()
    best = Choice("llama", NO_GAIN)
    most = MARGIN
    with EmbeddingModel(config, load_weights(config)) as plain:
        for name in kernels.library().instruction_sets:
            with EmbeddingModel(config, Weights(config, kernels=name)) as model:
                cosine = compare(plain, model)
                if not cosine >= (LEAST_COSINE_BF16 if rounds or name in kernels.BF16 else LEAST_COSINE):
                    best = Choice("llama", f"in a trial {name} gave other vectors, with a cosine of {cosine:.6f}")
                    break
                speedup = measure(plain, model)
            if speedup >= most:
                best = Choice(name, f"{speedup:.2f} times as fast as llama.cpp, cosine {cosine:.6f}")
                most = speedup
            if speedup >= ENOUGH:
                break
    print(msgspec.json.encode(best).decode())


def compare(plain: EmbeddingModel, model: EmbeddingModel) -> float:
    """Return the least cosine between the rows of two models, over all canaries, with one thread and with two."""
    return min(_cosine(plain.encode(batch), model.encode(batch, n)) for batch in _batches(plain) for n in (1, 2))


def measure(plain: EmbeddingModel, model: EmbeddingModel) -> float:
    """Return how many times as fast as `plain` a model computes, by the fastest of rounds taken in turn.

    With one thread, as a pool that has enough to do.
    """
    batch = _batches(plain)[1]
    end = time.perf_counter() + MEASURE_S
    seconds: tuple[list[float], list[float]] = ([], [])
    while not seconds[1] or (len(seconds[1]) < N_ROUNDS and time.perf_counter() < end):
        for which, taken in zip((plain, model), seconds, strict=True):
            started = time.perf_counter()
            which.encode(batch)
            taken.append(time.perf_counter() - started)
    return min(seconds[0]) / min(seconds[1])


def _batches(model: EmbeddingModel) -> list[Batch]:
    random = np.random.default_rng(0)
    n_vocab = c_api.llama_vocab_n_tokens(model._weights.vocab)
    kind = RowKind.TOKEN if model.pooling == "none" else RowKind.TEXT
    batches = []
    for lengths in CANARIES:
        texts = [random.integers(n_vocab, size=min(n, model.limit), dtype=np.int32) for n in lengths]
        batches.append(Batch.join(texts, None if model.pooling == "rank" else [kind] * len(texts)))
    return batches


def _cosine(a: Rows, b: Rows) -> float:
    if a.shape[1] == 1:  # scores
        return float(1 - np.abs(a - b).max() / max(1.0, np.abs(a).max()))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / lengths).min())


if __name__ == "__main__":
    main(*sys.argv[1:])
