"""Outputs: files that a later run can go on with, or standard output.

open ──► append: a part's bytes to disk, then the manifest that counts them ──► finish: the file in its place
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from embellama.bulk.durable import OutputFile, check_place, put_in_place
from embellama.bulk.job import BulkJob
from embellama.bulk.manifest import Manifest
from embellama.bulk.writers import Writer
from embellama.errors import ConfigError


class Output(Protocol):
    """Takes what a writer makes."""

    def earlier(self) -> Manifest | None:
        """Return how far an earlier run is that is to be gone on with; None to begin.

        Raises:
            ConfigError: There is an output that is neither to be gone on with nor to be replaced, or no place for one.
        """

    def open(self, writer: Writer, manifest: Manifest) -> None:
        """Begin, or go on where a manifest says."""

    def append(self, part: Sequence[bytes], manifest: Manifest) -> None:
        """Add a part, then count it."""

    def finish(self, manifest: Manifest) -> None:
        """Put the finished output in its place."""

    def close(self) -> None:
        """Leave everything as it is."""


def output_of(job: BulkJob) -> Output:
    """Return the output of a job."""
    return StandardOutput() if job.output == "-" else FileOutput(job)


class FileOutput:
    """Writes files, with a manifest beside them."""

    def __init__(self, job: BulkJob):
        self._job = job
        self._path = Path(job.output)
        self._files: list[OutputFile] = []

    def earlier(self) -> Manifest | None:
        path = self._path
        check_place("output", path)
        if self._job.overwrite:
            return None
        manifest = Manifest.read(path)
        if self._job.resume:
            if manifest is None and path.exists():
                raise ConfigError(f"{path} is there without {Manifest.path(path).name}, so nothing tells how to go on")
            return manifest
        if manifest is not None and manifest.state != "complete":
            raise ConfigError(
                f"{path} is the output of a run that was ended; --resume goes on, --overwrite begins anew"
            )
        if path.exists():
            raise ConfigError(f"{path} is there already; --overwrite replaces it")
        return None

    def open(self, writer: Writer, manifest: Manifest) -> None:
        self._writer = writer
        self._files = [OutputFile(path) for path in writer.paths(self._path)]
        if manifest.state != "running":
            return
        for file, length in zip(self._files, manifest.lengths or [0] * len(self._files), strict=True):
            file.open(length)
        if not manifest.lengths:
            self.append(writer.begin(), manifest)

    def append(self, part: Sequence[bytes], manifest: Manifest) -> None:
        for file, data in zip(self._files, part, strict=True):
            file.append(data)
        self._record(manifest)

    def finish(self, manifest: Manifest) -> None:
        if manifest.state == "complete":
            return
        if manifest.state == "running":
            self._record(manifest, "written")
        main, *beside = self._files
        for file in beside:
            if file.partial.exists():
                put_in_place(file.partial, file.path)
        # Last of all, and what it was made of after it: one of them is always there.
        if main.partial.exists():
            put_in_place(self._writer.finish(main.partial), main.path)
            main.partial.unlink(missing_ok=True)
        self._record(manifest, "complete")

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _record(self, manifest: Manifest, state: str = "running") -> None:
        lengths = [file.length for file in self._files] if manifest.state == "running" else manifest.lengths
        msgspec.structs.replace(manifest, state=state, lengths=lengths).write(self._path)


class StandardOutput:
    """Writes to standard output; there is nothing to go on with."""

    def earlier(self) -> Manifest | None:
        return None

    def open(self, writer: Writer, manifest: Manifest) -> None:
        self.append(writer.begin(), manifest)

    def append(self, part: Sequence[bytes], manifest: Manifest) -> None:
        for data in part:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def finish(self, manifest: Manifest) -> None:
        pass

    def close(self) -> None:
        pass
