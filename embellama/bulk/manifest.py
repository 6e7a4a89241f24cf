"""`Manifest`: what a run was asked, with what, and how far it is; a file beside the output.

OUT.manifest.json is written again after each part, once the part is on disk. A run that goes on must have been asked
the same of the same model and the same inputs.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from embellama.bulk.durable import write_whole
from embellama.bulk.inputs import Input
from embellama.bulk.rows import Position
from embellama.errors import ConfigError

# So many changes are named to who asks for another job than was begun.
MOST_CHANGES = 5


class Counts(msgspec.Struct, frozen=True):
    """What was done.

    Attributes:
        rows: Rows written, also those that failed.
        failed: Those that failed.
        skipped: Rows left out, as they are empty.
        tokens: Tokens of the rows written; of equal texts in a part, each counts. Where a server counts only those of
            a request, each of its rows has their mean.
        cut: Rows of which tokens were left out.
        failures: How many rows failed for each code of an error.
    """

    rows: int = 0
    failed: int = 0
    skipped: int = 0
    tokens: int = 0
    cut: int = 0
    failures: dict[str, int] = {}

    def __add__(self, other: "Counts") -> "Counts":
        return self._each(operator.add, other)

    def __sub__(self, other: "Counts") -> "Counts":
        return self._each(operator.sub, other)

    def _each(self, change: Callable[[int, int], int], other: "Counts") -> "Counts":
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        was, more = mine.pop("failures"), theirs.pop("failures")
        failures = {code: change(was.get(code, 0), more.get(code, 0)) for code in sorted({*was, *more})}
        numbers = {name: change(mine[name], theirs[name]) for name in mine}
        return Counts(**numbers, failures={code: n for code, n in failures.items() if n})


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked, with what, and how far it is.

    Attributes:
        state: ``running``; ``written`` when every part is; ``complete`` when the output is in its place.
        options: Options of the job that the output depends on.
        model: What vectors depend on: weights, prompt, settings, versions.
        packages: Versions of packages that the output depends on beside those of the model.
        inputs: The inputs, each document of a folder by itself.
        counts: What was done.
        position: The place in the inputs after the last part.
        lengths: Bytes written to each file.
        started: When the run was first begun, ISO 8601.
        seconds: How long it took, time in which it was ended left out.
    """

    state: Literal["running", "written", "complete"] = "running"
    options: dict[str, Any]
    model: dict[str, Any]
    packages: dict[str, str] = {}
    inputs: list[Input]
    counts: Counts = Counts()
    position: Position = Position()
    lengths: list[int] = []
    started: str
    seconds: float = 0.0

    @staticmethod
    def path(output: Path) -> Path:
        """Return where the manifest of an output is."""
        return output.with_name(output.name + ".manifest.json")

    @classmethod
    def read(cls, output: Path) -> "Manifest | None":
        """Read the manifest of an output; None if there is none.

        Raises:
            ConfigError: It cannot be read, or is none.
        """
        path = cls.path(output)
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None

    def write(self, output: Path) -> None:
        """Write it, so that it is on disk when this returns."""
        write_whole(self.path(output), msgspec.json.format(msgspec.json.encode(self)))

    def check_same(self, other: "Manifest") -> None:
        """Raise `ConfigError` naming what is not as in `other`, which is asked for now."""
        mine, theirs = (msgspec.json.decode(msgspec.json.encode(each)) for each in (self, other))  # as they are read
        parts = ("options", "model", "packages")
        found = [change for part in parts for change in _changes(part, mine[part], theirs[part])]
        found += _changed_inputs(mine["inputs"], theirs["inputs"])
        if found:
            more = f"; and {len(found) - MOST_CHANGES} more" if len(found) > MOST_CHANGES else ""
            raise ConfigError(f"the run cannot be gone on with: {'; '.join(found[:MOST_CHANGES])}{more}")


def _changed_inputs(was: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
    paths, paths_now = ([each["source"]["path"] for each in inputs] for inputs in (was, now))
    if paths == paths_now:
        for path, mine, theirs in zip(paths, was, now, strict=True):
            yield from (f"{path}: {change}" for change in _changes("", mine["identity"], theirs["identity"]))
        return
    gone, new = dict.fromkeys(paths).keys() - {*paths_now}, dict.fromkeys(paths_now).keys() - {*paths}
    yield from (f"{path} is no longer there" for path in sorted(gone))
    yield from (f"{path} is new" for path in sorted(new))
    if not gone and not new:
        yield "the inputs come in another order"


def _changes(name: str, was: Any, now: Any) -> Iterator[str]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*was, *now]):
            yield from _changes(f"{name}.{key}" if name else key, was.get(key), now.get(key))
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (mine, theirs) in enumerate(zip(was, now, strict=True)):
            yield from _changes(f"{name}[{number}]", mine, theirs)
    elif was != now:
        yield f"{name} was {was!r} and is {now!r}"
