"""Measure how many tokens to compute together: for this model, on this CPU, with this many threads.

   tuned, tuned_apart ──► max_batch_tokens is set? ──► the cache folder knows? ──► as it says
                                                               │ no
   texts of 16 random tokens, in batches of each size in turn ◄┘
            └──► seconds for a token, round by round ──► choose ──► the cache folder, the log

llama.cpp masks an n × n square for a batch of n tokens, whatever the texts, so its large batches waste work; small ones
use the matrix units badly. Where the best lies depends on the CPU's units and caches and on the weights' type.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from embellama.batch import Batch, RowKind
from embellama.config import DEFAULT_BATCH_TOKENS, Config, EngineConfig
from embellama.errors import EmbeddingFailed, EmbellamaError
from embellama.gguf.loading import load_weights
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from embellama.machine.devices import devices
from embellama.machine.isolated import IsolatedProcess
from embellama.machine.measurements import CachedMeasurement
from embellama.model import EmbeddingModel

logger = logging.getLogger("embellama.tuning")

# With less than 64, a pool spends its time between batches. More than 384 gained nothing where it was tried, and holds
# the machine so much longer before a short text that just came.
SIZES = (64, 96, 128, 192, 256, 384)

# Short texts gain most from larger batches, so that is what a sweep computes.
TEXT_TOKENS = 16

# A sweep takes this long at most, and a fast model is done after `N_ROUNDS`. Fewer than `MIN_ROUNDS` tell nothing.
SWEEP_S = 1.75
N_ROUNDS, MIN_ROUNDS = 9, 2

# Our kernels attend text by text, so that a large batch wastes nothing, and long texts gain by it (5,830 tokens a
# second against 5,420 in batches of 192; AVX2, 2 cores). The short texts of a sweep do not show that.
KERNELS_PREFER = 384

# A smaller advantage over the preferred size than this is noise.
MARGIN = 1.03

# Seconds for a token with each size of batch, by size.
Round = Mapping[int, float]


def tuned(config: Config, weights: Weights) -> Config:
    """Return a checked config with `max_batch_tokens` filled in; if it must be measured, then on loaded `weights`."""
    return _tuned(config, weights, lambda: sweep(weights, config))


def tuned_apart(config: Config, vocabulary: Weights) -> Config:
    """Return what `tuned` does, but measure in a separate process that loads the weights; `vocabulary` has none."""

    def measured() -> list[Round]:
        own = EngineConfig(**{name: getattr(config, name) for name in EngineConfig.__struct_fields__})
        with IsolatedProcess(load_weights, own) as process:
            return process.call(sweep, own)

    return _tuned(config, vocabulary, measured)


def _tuned(config: Config, weights: Weights, measured: Callable[[], list[Round]]) -> Config:
    if config.max_batch_tokens:
        return _told(config, config.max_batch_tokens, "as set")
    sizes = candidates(config, weights)
    if not sizes:
        how = f"the default: max_batch_size {config.max_batch_size} and n_ctx {config.n_ctx} leave no sizes to compare"
        return _told(config, DEFAULT_BATCH_TOKENS, how)
    header = weights.header
    tensors = [(name, kind, header.n_values[name]) for name, kind in header.tensors.items()]
    parts = [(device.name, device.description) for device in devices()]
    computing = (config.n_threads_busy, config.n_gpu_layers, config.compute)
    measurement = CachedMeasurement("batch-tokens", sizes, header.architecture, tensors, parts, computing)
    known = measurement.read() or ""
    if known in {str(size) for size in SIZES}:
        return _told(config, int(known), "as measured before")
    started = time.monotonic()
    try:
        rounds = measured()
    except (EmbellamaError, OSError) as error:
        # The pool will meet what is wrong with the model, and say so.
        logger.warning("how many tokens to compute together could not be measured: %s", error)
        return _told(config, DEFAULT_BATCH_TOKENS, "the default")
    size = choose(rounds, KERNELS_PREFER if config.compute != "llama" else DEFAULT_BATCH_TOKENS)
    if len(rounds) < MIN_ROUNDS:  # not kept: perhaps the machine was busy
        return _told(config, size, f"the default: {SWEEP_S} s were too short to measure this model")
    measurement.write(str(size))
    return _told(config, size, f"measured in {time.monotonic() - started:.1f} s")


def _told(config: Config, size: int, how: str) -> Config:
    logger.info("batches of up to %d tokens: %s", size, how)
    return msgspec.structs.replace(config, max_batch_tokens=size)


def candidates(config: EngineConfig, weights: Weights) -> list[int]:
    """Return the sizes to choose from, in tokens; none where `max_batch_size` keeps batches smaller than any."""
    length, most = _lengths(config, weights)
    found = [n for n in SIZES if n <= max(most, DEFAULT_BATCH_TOKENS) and n // length <= config.max_batch_size]
    return found if DEFAULT_BATCH_TOKENS in found else []


def sweep(weights: Weights, config: EngineConfig) -> list[Round]:
    """Compute batches of each size in turn, for `SWEEP_S` at most.

    Returns:
        Whole rounds; fewer than `MIN_ROUNDS` if the model is too slow.

    Raises:
        ModelError: llama.cpp failed.
    """
    sizes = candidates(config, weights)
    length, _ = _lengths(config, weights)
    random = np.random.default_rng(0)
    ids = random.integers(c_api.llama_vocab_n_tokens(weights.vocab), size=max(sizes), dtype=np.int32)
    kind = RowKind.TOKEN if weights.pooling == "none" else RowKind.TEXT

    def batch(n_texts: int) -> Batch:
        texts = np.split(ids[: n_texts * length], n_texts)
        return Batch.join(texts, [kind] * n_texts)

    def seconds(batch: Batch) -> float:
        started = time.perf_counter()
        with contextlib.suppress(EmbeddingFailed):  # a vector that is not finite takes no longer to compute
            model.encode(batch, config.n_threads_busy)
        return time.perf_counter() - started

    batches = {size: batch(size // length) for size in sizes}
    end = time.perf_counter() + SWEEP_S
    rounds: list[Round] = []
    with EmbeddingModel(msgspec.structs.replace(config, max_batch_tokens=max(sizes)), weights) as model:
        seconds(batch(1))  # reads the weights from disk
        speed = min(seconds(batch(1)) for _ in range(3)) / length
        if speed * sum(sizes) > 2 * SWEEP_S:  # not even one round, though large batches take less for a token
            return rounds
        seconds(batches[max(sizes)])  # takes the memory that all of them compute in
        while len(rounds) < N_ROUNDS:
            round = {}
            for size in sizes:
                if time.perf_counter() + speed * size > end:
                    return rounds
                speed = seconds(batches[size]) / len(batches[size].tokens)
                round[size] = speed
            rounds.append(round)
    return rounds


def choose(rounds: Sequence[Round], preferred: int = DEFAULT_BATCH_TOKENS) -> int:
    """Choose the size of batches: the preferred one unless another is clearly faster, then the fastest.

    Each size counts with its fastest round: what else the machine does makes a batch slower, never faster.
    """
    if len(rounds) < MIN_ROUNDS:
        return DEFAULT_BATCH_TOKENS
    least = {size: min(round[size] for round in rounds) for size in rounds[0]}
    best = min(least, key=least.__getitem__)
    preferred = preferred if preferred in least else DEFAULT_BATCH_TOKENS
    return best if least[preferred] >= MARGIN * least[best] else preferred


def _lengths(config: EngineConfig, weights: Weights) -> tuple[int, int]:
    """Return how long the texts of a sweep are, and how long texts may be."""
    most = min(config.n_ctx or weights.n_ctx_train, weights.n_ctx_train)
    return min(TEXT_TOKENS, most), most
