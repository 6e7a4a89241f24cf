"""Keep which format of a model is fastest on this machine, and say so where a slower one is served.

scripts/download_models.py ──► bench.compare ──► Comparison ── write ──► the cache folder: formats-KEY
                                                                               │
the server's start, `embellama inspect` ◄── faster_format ◄── read ◄───────────┘

Every format of a model finds the same measurement, for its key holds what they have in common: the architecture, the
tensors' names and sizes, and the numbers of norms and biases, which are F32 in all of them. Other weights of the same
shape have other numbers. It also holds the CPU, how many cores may be used, and (`CachedMeasurement`) the build of
llama.cpp.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

from embellama.config import EngineConfig, n_cores
from embellama.gguf.header import Header
from embellama.machine.devices import devices
from embellama.machine.measurements import CachedMeasurement

# Vectors with at least this cosine to the most precise ones count as faithful: those of 16-bit weights, not quite 8-bit
# (all-MiniLM-L6-v2: F16 0.999997, BF16 0.99996, Q8_0 0.998).
FAITHFUL = 0.9999


class FormatSpeed(msgspec.Struct, frozen=True):
    """How fast one format of a model was, and how near its vectors were to the most precise format's.

    Attributes:
        format: The type of its weights: ``f16``, …
        texts_per_s: Short texts embedded in a second, with a context for each core.
        worst_cosine: Least cosine of a text's vector to the most precise format's.
    """

    format: str
    texts_per_s: float
    worst_cosine: float


class Comparison(msgspec.Struct, frozen=True):
    """The formats of a model that were measured side by side on this machine.

    Attributes:
        formats: At least one.
        command: Makes a file in the fastest of those that are faithful.
    """

    formats: list[FormatSpeed]
    command: str

    @property
    def best(self) -> FormatSpeed | None:
        """The fastest of those that are faithful."""
        return fastest_faithful(self.formats)

    def __str__(self) -> str:
        ordered = sorted(self.formats, key=lambda format: -format.texts_per_s)
        return ", ".join(f"{each.format} {each.texts_per_s:.0f} texts/s ({each.worst_cosine:.6f})" for each in ordered)


class _Measured(Protocol):
    @property
    def texts_per_s(self) -> float: ...
    @property
    def worst_cosine(self) -> float: ...


Measured = TypeVar("Measured", bound=_Measured)


def fastest_faithful(formats: Iterable[Measured]) -> Measured | None:
    """Choose the fastest of those whose cosine is at least `FAITHFUL`; None if there is none."""
    faithful = [format for format in formats if format.worst_cosine >= FAITHFUL]
    return max(faithful, key=lambda format: format.texts_per_s, default=None)


def read(header: Header) -> Comparison | None:
    """Return what was measured for a model, whichever of its formats `header` is of; None if nothing was."""
    kept = _measurement(header)
    try:
        return msgspec.json.decode((kept.read() or "") if kept else "", type=Comparison)
    except msgspec.DecodeError:
        return None


def write(header: Header, comparison: Comparison) -> None:
    """Keep what was measured for the model of `header`."""
    kept = _measurement(header)
    if kept:
        kept.write(msgspec.json.encode(comparison).decode())


def faster_format(config: EngineConfig, header: Header) -> str:
    """Say which format of a model was measured to be faster than its file, and what makes it; "" if none is known."""
    if config.n_gpu_layers:  # it was measured on the CPU
        return ""
    known = read(header)
    best, own = known and known.best, header.quantization
    mine = next((format for format in known.formats if format.format == own), None) if known else None
    if not known or not best or not mine or best is mine:
        return ""
    ratio = best.texts_per_s / mine.texts_per_s
    return (
        f"it is in {own}, and {best.format} was {ratio:.2f} times as fast on this machine, as faithful (cosine ≥ "
        f"{FAITHFUL}); {known.command} makes it"
    )


def _measurement(header: Header) -> CachedMeasurement | None:
    try:
        numbers = _numbers_of_all_formats(header)
    except OSError:  # it was read a moment ago
        return None
    cpu = [device.description for device in devices() if device.kind == "cpu"]
    shapes = sorted(header.n_values.items())
    return CachedMeasurement("formats", header.architecture, shapes, numbers, cpu, n_cores())


def _numbers_of_all_formats(header: Header) -> str:
    """Hash the norms and biases, which are in F32 whatever the format (`soundness`): of a large model a megabyte."""
    found = hashlib.sha256()
    for name, type in sorted(header.tensors.items()):
        if type == "f32" and (name.endswith(".bias") or "norm" in name):
            with open(header.files[name], "rb") as file:
                file.seek(header.offsets[name])
                found.update(file.read(4 * header.n_values[name]))
    return found.hexdigest()
