"""Outputs of `embellama bulk`, and the commands over them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.bulk.manifest import Manifest
from embellama.bulk.writers import OutputRow

PROGRAM = "from embellama.cli.main import main; main(prog_name='embellama')"


def run_command(
    *arguments: str | Path, preexec_fn: Callable[[], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `embellama` to its end."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=preexec_fn)


def write_jsonl(path: Path, rows: NDArray[np.float32], failed: tuple[int, ...] = ()) -> Path:
    """Write rows as an output in JSON lines; their ids are letters."""
    lines = [
        OutputRow(i, chr(97 + i % 26), "failed" if i in failed else "ok", msgspec.UNSET if i in failed else row)
        for i, row in enumerate(rows.tolist())
    ]
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return path


def write_manifest(output: Path, **changes: object) -> None:
    """Write the manifest of a finished output."""
    values = {"state": "complete", "options": {"dtype": "float32", "dimensions": None}, "model": {}, "inputs": []}
    Manifest(**{**values, "started": "", **changes}).write(output)  # type: ignore[arg-type]
