"""Measure which format of a model, and which settings, are fastest on this machine, and how faithful they are.

   one file ──► llama.cpp's quantizer ──► F32, F16, BF16, Q8_0 in a temporary folder ──┐
   several files ──────────────────────────────────────────────────────────────────────┴─► a process for each
                                                                                               │
   rounds: each computes short texts in turn, one after another ◄──────────────────────────────┘
      └──► medians ──► the best format in a few settings, in turn ──► Report (report.py)

A format that fails, or ends its process, is a row that says why. `bench` does all of this; `compare` stops
after the rounds, and so has time for more of them.
"""

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from embellama.advice.candidate import TEXTS, Candidate
from embellama.advice.formats import FAITHFUL, fastest_faithful
from embellama.advice.report import Report, Row, Setting
from embellama.batch import Rows
from embellama.config import DEFAULT_BATCH_TOKENS, n_cores
from embellama.errors import EmbellamaError, ModelError, ModelLoadError
from embellama.gguf.header import Header
from embellama.gguf.weights import pooling_of
from embellama.llama import c_api, last_error
from embellama.machine.devices import devices
from embellama.machine.isolated import IsolatedProcess

# llama.cpp's types of files (llama.h, `llama_ftype`) that are made of a model, and bytes for a weight, most precise
# first. Q8_0 keeps 32 weights in 34 bytes.
FORMATS = {
    "f32": (c_api.LLAMA_FTYPE_ALL_F32, 4.0),
    "f16": (c_api.LLAMA_FTYPE_MOSTLY_F16, 2.0),
    "bf16": (c_api.LLAMA_FTYPE_MOSTLY_BF16, 2.0),
    "q8_0": (c_api.LLAMA_FTYPE_MOSTLY_Q8_0, 34 / 32),
}

# Medians of fewer would be chance; more rounds are shorter ones.
N_ROUNDS = 5

# Measured for less than this, a rate says more of where its last batch ended than of how fast they were.
MIN_SLICE_S = 0.6

# A share of the time is for the settings of the best format.
SETTINGS_SHARE = 0.25

Processes = dict[str, IsolatedProcess[Candidate]]  # by path

Speeds = Sequence[tuple[float, float]]  # texts/s and milliseconds for one text alone, round by round

OnStep = Callable[[], object]  # called whenever a file was loaded, or measured once more


def bench(paths: Sequence[str], seconds: float) -> Report:
    """Measure files, or the formats that one file can be made into.

    Args:
        paths: GGUF files of one model, at least one.
        seconds: How long it may take about; everything is measured once at least, however long that takes.

    Raises:
        ModelLoadError: The only file is no embedding model, or none of several could be measured.
        OSError: There is no temporary folder.
    """
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        if len(paths) == 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="embellama-"))
            rows = list(_formats(paths[0], Path(folder)))
        else:
            rows = [_row(path) for path in dict.fromkeys(paths)]
        processes: Processes = {}
        rows = list(_compared(rows, processes, stack))
        reference = _most_precise(rows)
        rows = _measured(rows, processes, end - SETTINGS_SHARE * seconds)
        usable = [row for row in rows if not row.failed]
        if reference is None or not usable:
            raise ModelLoadError(paths[0], "; ".join(f"{row.name}: {row.failed}" for row in rows))
        fastest = max(usable, key=_speed)
        best = fastest_faithful(usable) or fastest
        settings = _settings(processes[best.path], end)
    return Report(
        cpu=next(device.description for device in devices() if device.kind == "cpu"),
        n_cores=n_cores(),
        n_texts=len(TEXTS),
        reference=reference.name,
        rows=rows,
        settings=settings,
        advice=_advice(best, settings, fastest),
    )


def compare(paths: Sequence[str], seconds: float, on_step: OnStep) -> list[Row]:
    """Measure files of one model side by side, in the settings that a busy machine has.

    All compute batches of the same size: to find the best for each would take longer than all else. Each counts with
    its fastest round: what else the machine does makes a round slower, never faster.

    Args:
        paths: GGUF files.
        seconds: How long it may take about, as for `bench`.
        on_step: Called often meanwhile, for a progress bar.
    """
    end = time.monotonic() + seconds
    processes: Processes = {}
    with contextlib.ExitStack() as stack:
        rows = list(_compared([_row(path) for path in paths], processes, stack, DEFAULT_BATCH_TOKENS, on_step))
        return _measured(rows, processes, end, on_step, _fastest)


def _row(path: str) -> Row:
    """Describe one of several files."""
    try:
        header = _checked(path)
    except ModelLoadError as error:
        return Row(name=Path(path).name, path=path, failed=error.reason)
    name = f"{Path(path).name} ({header.quantization})"
    return Row(name=name, format=header.quantization, path=path, n_bytes=header.n_bytes)


def _formats(path: str, folder: Path) -> Iterator[Row]:
    """Make every format of one file, most precise first; the file itself is one of them."""
    header = _checked(path)
    own = Row(name=header.quantization, format=header.quantization, path=path, n_bytes=header.n_bytes)
    for name in FORMATS:
        yield own if name == own.format else _made(header, name, folder)
    if own.format not in FORMATS:
        yield own


def _checked(path: str) -> Header:
    header = Header(path)
    pooling = pooling_of(header, "auto")
    if pooling in ("rank", "none"):
        raise ModelLoadError(path, f"its pooling is {pooling}, which gives no vectors of texts to compare")
    return header


def _made(header: Header, name: str, folder: Path) -> Row:
    ftype, n_bytes_each = FORMATS[name]
    target = folder / f"{name}.gguf"
    row = Row(name=name, format=name, path=str(target))
    wanted, free = n_bytes_each * sum(header.n_values.values()), shutil.disk_usage(folder).free
    if wanted > free:
        reason = f"it needs {wanted / 1e6:.0f} MB of disk in {folder.parent}, where {free / 1e6:.0f} MB are free"
        return msgspec.structs.replace(row, failed=reason)
    try:
        with IsolatedProcess(_Quantizer) as process:
            process.call(_Quantizer.quantize, header.path, row.path, ftype)
        return msgspec.structs.replace(row, n_bytes=Header(row.path).n_bytes)
    except (EmbellamaError, OSError) as error:
        return msgspec.structs.replace(row, failed=_reason(error))


class _Quantizer:
    """Runs llama.cpp's quantizer, in a separate process because it may end one."""

    def quantize(self, path: str, target: str, ftype: int) -> None:
        params = c_api.llama_model_quantize_default_params()
        params.ftype = ftype
        params.nthread = n_cores()
        last_error()
        if c_api.llama_model_quantize(os.fsencode(path), os.fsencode(target), params):
            reason = last_error().removeprefix("failed to quantize: ")
            raise ModelError(reason or "llama.cpp does not say why")


def _compared(
    rows: Sequence[Row],
    processes: Processes,
    stack: contextlib.ExitStack,
    max_batch_tokens: int = 0,
    on_step: OnStep = lambda: None,
) -> Iterator[Row]:
    """Start a process for each file and fill in how near its vectors are to the most precise file's."""
    vectors: dict[str, Rows] = {}
    loaded = []
    for row in rows:
        if not row.failed:
            try:
                processes[row.path] = process = stack.enter_context(
                    IsolatedProcess(Candidate, row.path, max_batch_tokens)
                )
                vectors[row.path], config = process.call(Candidate.vectors)
                row = msgspec.structs.replace(row, max_batch_tokens=config.max_batch_tokens, compute=config.compute)
            except (EmbellamaError, OSError) as error:
                row = msgspec.structs.replace(row, failed=_reason(error))
        loaded.append(row)
        on_step()
    reference = _most_precise(loaded)
    for row in loaded:
        if reference and not row.failed:
            ours, theirs = vectors[row.path], vectors[reference.path]
            if ours.shape != theirs.shape:
                reason = f"its vectors have {ours.shape[1]} numbers, those of {reference.name} {theirs.shape[1]}"
                row = msgspec.structs.replace(row, failed=reason)
            else:
                cosines = (ours.astype(np.float64) * theirs).sum(axis=1)  # of unit length
                worst, mean = min(1.0, float(cosines.min())), min(1.0, float(cosines.mean()))
                row = msgspec.structs.replace(row, worst_cosine=worst, mean_cosine=mean)
        yield row


def _most_precise(rows: Sequence[Row]) -> Row | None:
    precision = list(FORMATS)

    def key(row: Row) -> tuple[int, int]:
        return (precision.index(row.format) if row.format in precision else len(precision)), -row.n_bytes

    return min((row for row in rows if not row.failed), key=key, default=None)


def _measured(
    rows: Sequence[Row],
    processes: Processes,
    end: float,
    on_step: OnStep = lambda: None,
    of_rounds: Callable[[Speeds], dict[str, float]] | None = None,
) -> list[Row]:
    """Fill in speeds: medians, if not told otherwise, over rounds in which each file computes in turn."""
    failed: dict[str, str] = {row.path: row.failed for row in rows if row.failed}
    speeds: dict[str, list[tuple[float, float]]] = {row.path: [] for row in rows if not row.failed}
    for seconds in _slices(end, len(speeds)):
        for path in [path for path in speeds if path not in failed]:
            try:
                speeds[path].append(processes[path].call(Candidate.speed, seconds))
            except EmbellamaError as error:
                failed[path] = _reason(error)
            on_step()
    return [
        msgspec.structs.replace(row, failed=failed[row.path])
        if row.path in failed
        else msgspec.structs.replace(row, **(of_rounds or _medians)(speeds[row.path]))
        for row in rows
    ]


def _settings(process: IsolatedProcess[Candidate], end: float) -> list[Setting]:
    """Measure the best format with fewer workers that have more threads, and on half of the cores."""
    n = n_cores()
    choices: dict[tuple[int, int], list[tuple[float, float]]]
    choices = {(max(1, workers), 0): [] for workers in (n, n // 2, n // 4, 1)}
    if n > 2:
        choices[n // 2, 1] = []
    for seconds in _slices(end, len(choices)):
        for choice in list(choices):
            try:
                choices[choice].append(process.call(Candidate.speed, seconds, *choice))
            except EmbellamaError:  # no memory for so many contexts, say
                del choices[choice]
    return [
        Setting(num_workers=workers, n_threads=threads, **_medians(speeds))
        for (workers, threads), speeds in choices.items()
    ]


def _slices(end: float, n: int) -> Iterator[float]:
    """Yield how long each of `n` may compute in the next round: once, or until `end`, at most `N_ROUNDS` times."""
    left, n = max(0.0, end - time.monotonic()), max(1, n)
    n_rounds = max(1, min(N_ROUNDS, int(left / (n * MIN_SLICE_S))))
    seconds = max(MIN_SLICE_S, left / (n_rounds * n))
    for done in range(n_rounds):
        if done and time.monotonic() + n * seconds > end + seconds:
            return
        yield seconds


def _medians(speeds: Speeds) -> dict[str, float]:
    texts_per_s, p50_ms = zip(*speeds, strict=True)
    return {"texts_per_s": statistics.median(texts_per_s), "p50_ms": statistics.median(p50_ms)}


def _fastest(speeds: Speeds) -> dict[str, float]:
    texts_per_s, p50_ms = zip(*speeds, strict=True)
    return {"texts_per_s": max(texts_per_s), "p50_ms": min(p50_ms)}


def _advice(best: Row, settings: Sequence[Setting], fastest: Row) -> str:
    setting = max(settings, key=_speed, default=None)
    flags = f", --workers {setting.num_workers}" if setting else ""
    flags += f" --n-threads {setting.n_threads}" if setting and setting.n_threads else ""
    cosine = f"cosine ≥ {FAITHFUL}" if best.worst_cosine >= FAITHFUL else f"worst cosine {best.worst_cosine:.5f}"
    others = "" if fastest is best else f"; fastest of all: {fastest.name} (worst cosine {fastest.worst_cosine:.4f})"
    return f"Fastest {'with' if others else 'of all, with'} {cosine}: {best.name}{flags}{others}"


def _speed(measured: Row | Setting) -> float:
    return measured.texts_per_s


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, ModelLoadError) else str(error)
