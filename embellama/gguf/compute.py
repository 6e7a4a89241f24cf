"""Choose what computes a model: our kernels, or llama.cpp's own code where that is faster.

load_weights, resolved ──► choose ──► `python -m embellama.compute_trial FILE` ──► a Choice, kept in the cache folder

CPU flags do not tell what is faster, and kernels that went wrong would give plausible vectors, or end the process. So
before they compute a model for the first time, a process of its own compares them with llama.cpp on it.
"""

import logging
import os
import re
import signal
import subprocess
import sys

import msgspec

from embellama import kernels
from embellama.config import Config, EngineConfig
from embellama.errors import ConfigError
from embellama.gguf.header import Header
from embellama.machine.isolated import python_environment
from embellama.machine.measurements import CachedMeasurement
from embellama.machine.signals import how_it_ended

logger = logging.getLogger("embellama.gguf.compute")

# Formats of weights that our kernels compute with.
TYPES = {"f32", "f16", "bf16"}

# A model with less in its layers is computed in less time than it takes to measure what would be faster.
MIN_BYTES = 4_000_000

# The module of the trial. It is named, not imported: it computes with a model, and so imports this module.
TRIAL = "embellama.compute_trial"

# The reason to leave a model to llama.cpp that is no fault of the kernels.
NO_GAIN = "our kernels are no faster here"

# Loading takes most of a trial.
TRIAL_S = 120.0

# Signals by which a process ends itself. Others come from outside: memory was short, or the user had enough.
CRASHES = {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV}


class Choice(msgspec.Struct, frozen=True):
    """What computes a model, and why.

    Attributes:
        compute: ``llama``, or an instruction set of our kernels.
        reason: One line for people.
    """

    compute: str
    reason: str


def choose(config: EngineConfig) -> Choice:
    """Choose what computes the model of `config`; at the first start with it here, by a trial that takes seconds.

    Raises:
        ConfigError: The config names an instruction set that cannot be used.
        ModelLoadError: The file is missing, unreadable or not GGUF.
    """
    if config.compute == "llama":
        return Choice("llama", "as set")
    try:
        library = kernels.library()
    except kernels.KernelsUnusable as error:
        if config.compute != "auto":
            raise ConfigError(f"compute is {config.compute!r}, but our kernels cannot be used: {error}") from None
        return Choice("llama", str(error))
    header = Header(config.model_path)
    why_not = _why_not(config, header)
    if config.compute != "auto":
        if config.compute not in library.instruction_sets:
            known = ", ".join(library.instruction_sets)
            raise ConfigError(f"compute is {config.compute!r}; on this CPU it can be llama, {known} or auto")
        if why_not:
            raise ConfigError(f"compute is {config.compute!r}, but {why_not}")
        return Choice(config.compute, "as set")
    if why_not:
        return Choice("llama", why_not)
    if sum(n for _, n in _layers(header)) * 2 < MIN_BYTES:
        return Choice("llama", "the model is too small to gain from kernels")
    return _measured(config, header, tuple(library.instruction_sets))


def resolved(config: Config) -> Config:
    """Return `config` with `compute` chosen. Raises as `choose` does."""
    return msgspec.structs.replace(config, compute=choose(config).compute)


def memory_bytes(header: Header, compute: str) -> int:
    """Return how much memory a model's weights take: those that our kernels pack lie there beside the file's."""
    if compute == "llama":
        return header.n_bytes
    wide = 2 if compute in kernels.BF16 else 4
    return header.n_bytes + sum(n * (wide if kind == "f32" else 2) for kind, n in _layers(header))


def _layers(header: Header) -> list[tuple[str, int]]:
    """Return the type and the number of values of each weight that would be packed."""
    packed = re.compile(kernels.LAYERS)
    return [(kind, header.n_values[name]) for name, kind in header.tensors.items() if packed.match(name)]


def _why_not(config: EngineConfig, header: Header) -> str:
    """Say why our kernels cannot compute a file, or ""."""
    if config.n_gpu_layers:
        return "layers are on a GPU"
    types = {kind for kind, _ in _layers(header)}
    if not types:
        return "none of its layers is known"
    if other := sorted(types - TYPES):
        return f"its weights are {', '.join(other)}, and kernels are for f32, f16 and bf16"
    return ""


def _measured(config: EngineConfig, header: Header, instruction_sets: tuple[str, ...]) -> Choice:
    # Weights of the same shapes may have numbers that kernels get wrong, and only reading all would tell them apart.
    stats = [os.stat(file) for file in sorted({*header.files.values()})]
    stamps = [(stat.st_size, stat.st_mtime_ns) for stat in stats]  # which a file keeps when it is moved
    measurement = CachedMeasurement("compute", instruction_sets, header.values, header.tensors, stamps)
    if known := measurement.read():
        try:
            return msgspec.json.decode(known, type=Choice)
        except msgspec.DecodeError:
            logger.debug("%s is damaged, and measured again", measurement.path)
    choice, kept = _try(config)
    level = logging.INFO if choice.compute != "llama" or choice.reason == NO_GAIN else logging.WARNING
    logger.log(level, "%s is computed with %s: %s", config.model_path, choice.compute, choice.reason)
    if kept:
        measurement.write(msgspec.json.encode(choice).decode())
    return choice


def _try(config: EngineConfig) -> tuple[Choice, bool]:
    """Compare our kernels with llama.cpp in a process of its own; return what to do, and whether that will stay so."""
    if not sys.executable or getattr(sys, "frozen", False):
        return Choice("llama", "there is no Python to try our kernels with"), False
    command = [sys.executable, "-m", TRIAL, config.model_path, config.pooling]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_S, env=python_environment()
        )
    except subprocess.TimeoutExpired:
        reason = f"the trial of our kernels took more than {TRIAL_S:.0f} s; touch the file to repeat it"
        return Choice("llama", reason), True
    except OSError as error:
        return Choice("llama", f"the trial of our kernels could not be started: {error}"), False
    if done.returncode < 0:
        return Choice("llama", f"the trial of our kernels {how_it_ended(done.returncode)}"), (
            -done.returncode in CRASHES
        )
    try:
        return msgspec.json.decode(done.stdout, type=Choice), True
    except msgspec.DecodeError:
        reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return Choice("llama", f"the trial of our kernels failed: {reason}"), False
