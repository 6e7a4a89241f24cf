"""Kill this process at a moment that is chosen: at the nth call of what does one stage of a run; and count its work.

Nothing is replaced: what is called does its work until the process is gone.
"""

import functools
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from embellama.bulk import durable, files, output
from embellama.bulk.backend import EngineBackend
from embellama.bulk.durable import OutputFile
from embellama.bulk.output import FileOutput
from embellama.bulk.rows import RowMaker


class Fault(NamedTuple):
    """When to die.

    stage: One of `STAGES` or `LAST_STAGES`.
    call: At which call of what does it, from 1.
    """

    stage: str
    call: int


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_soon(*_: Any) -> None:
    threading.Timer(0.002, die).start()


def die_within(file: OutputFile, data: bytes) -> None:
    """Write half of a part first."""
    assert file._file
    file._file.write(data[: len(data) // 2])
    file._file.flush()
    die()


# What does a stage, and what is done when it is called.
STAGES: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "reading": (RowMaker, "row", die),
    "computing": (EngineBackend, "_rows", die_soon),
    "writing": (OutputFile, "append", die_within),
    "before the file is on disk": (os, "fsync", die),
    "between file and manifest": (FileOutput, "_record", die),
    "between the manifest and its name": (durable, "put_in_place", die),
}
# Those at the end of a run, in their order.
LAST_STAGES: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "finishing": (FileOutput, "finish", die),
    "before the output has its name": (output, "put_in_place", die),
    "after the output has its name": (Path, "unlink", die),
}


def arm(fault: Fault) -> None:
    """Have this process killed in a stage."""
    owner, name, end = (STAGES | LAST_STAGES)[fault.stage]
    calls = 0

    def before(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fault.call:
            end(*arguments)

    _call_first(owner, name, before)


def count_rows(path: str) -> None:
    """Add a line to a file for each part that was computed, with its number of rows."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    compute = EngineBackend._outcomes

    def counted(backend: EngineBackend, texts: Any) -> Any:
        outcomes = compute(backend, texts)
        os.write(descriptor, b"%d\n" % len(outcomes))
        return outcomes

    setattr(EngineBackend, compute.__name__, counted)


def count_reads(path: str) -> None:
    """Add a line to a file for each read of an input, with its bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    class CountedFile(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            n = super().readinto(buffer)
            os.write(descriptor, b"%d\n" % n)
            return n

    def counted_open(path: str, mode: str = "rb", buffering: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
        return io.BufferedReader(CountedFile(path, mode), buffering)

    setattr(files, "open", counted_open)  # noqa: B010


def _call_first(owner: Any, name: str, before: Callable[..., None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        before(*arguments)
        return original(*arguments, **keywords)

    setattr(owner, name, wrapped)
