"""What `embellama search` and `embellama dedupe` take over many stored vectors, beside NumPy in memory.

    .venv/bin/python -m benchmarks.vectors --save     # and keeps it under benchmarks/results/

Both sides read the same `.npy` and use all cores, in turns; the figure is the median of the rounds' ratios. The
commands are run whole, their start and the loading of a model included; NumPy's side is one product and one
`argpartition`, read from the file each time, as a script would. Vectors are random, of unit length; half of the rows
of `dedupe` are noisy copies of earlier ones, and one product of all with all is what NumPy would need for it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare import ROOT, machine, result_base, write
from tests.conftest import BIN

DIM = 384
TOP_K = 10
# The noise of a copy: its cosine to the original is about 0.97.
NOISE = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description="What embellama search and dedupe take.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are searched (default: %(default)s)")
    parser.add_argument("--compared", type=int, default=50_000, help="rows of dedupe (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-vectors-CPU.json")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        searched, compared = Path(name) / "searched.npy", Path(name) / "compared.npy"
        write_rows(searched, options.rows)
        write_rows(compared, options.compared, copies=True)
        for n_queries in (1, 100):
            queries = [f"query number {number}" for number in range(n_queries)]
            command = [BIN / "embellama", "search", searched, *queries, "--model-path", options.model_path]
            found |= side_by_side(f"search, {n_queries} queries", command, [searched, n_queries], options.rounds)
        command = [BIN / "embellama", "dedupe", compared, "--threshold", "0.95"]
        found |= side_by_side("dedupe", command, [compared, 0], options.rounds)
    for label, value in found.items():
        print(f"{label:50} {value:10.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "rows": options.rows, "compared": options.compared, "found": found}
        path = result_base("vectors", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def side_by_side(label: str, command: Sequence[Any], arguments: Sequence[Any], n_rounds: int) -> dict[str, float]:
    """Run the command and NumPy in turns; return seconds, the ratio of speeds and the ratio of memory."""
    numpy_command = [sys.executable, "-m", "benchmarks.vectors_numpy", *map(str, arguments)]
    ours, theirs = [], []
    for _ in range(n_rounds):
        ours.append(timed(command))
        theirs.append(timed(numpy_command))
    ratios = [other[0] / own[0] for own, other in zip(ours, theirs, strict=True)]
    return {
        f"{label}: seconds": round(statistics.median(seconds for seconds, _ in ours), 2),
        f"{label}: NumPy, seconds": round(statistics.median(seconds for seconds, _ in theirs), 2),
        f"{label}: speed to NumPy": round(statistics.median(ratios), 3),
        f"{label}: MB": max(rss for _, rss in ours) / 1e6,
        f"{label}: NumPy, MB": max(rss for _, rss in theirs) / 1e6,
    }


def timed(command: Sequence[Any]) -> tuple[float, int]:
    """Run a command to its end; return seconds, and bytes of its largest resident set."""
    watch = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, "
        "stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    watched = [sys.executable, "-c", watch, *map(str, command)]
    rss = subprocess.run(watched, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return time.perf_counter() - started, int(rss) * 1024


def write_rows(path: Path, n_rows: int, *, copies: bool = False) -> None:
    """Write random unit vectors, ``(n_rows, DIM) float32``; with copies, the second half is like the first."""
    rng = np.random.default_rng(7)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, DIM))
    step = 50_000
    half = n_rows // 2 if copies else n_rows
    for start in range(0, half, step):
        rows[start : start + step][: half - start] = unit(rng.standard_normal((min(step, half - start), DIM)))
    if copies:
        noise = unit(rng.standard_normal((n_rows - half, DIM)))
        rows[half:] = unit(rows[: n_rows - half] + NOISE * noise)
    rows.flush()


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Scale rows to unit length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
