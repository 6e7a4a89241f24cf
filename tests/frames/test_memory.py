"""Memory does not grow with a frame that streams from file to file."""

import os
import sys
from pathlib import Path

import polars as pl

from tests.conftest import ROOT, run

# 160,000 vectors of 384 numbers are 246 MB.
FEW, MANY = 20_000, 160_000

PROGRAM = """
import resource, sys
import polars as pl
import embellama.polars

source, output, model = sys.argv[1:]
pl.Config.set_streaming_chunk_size(2_000)
frame = pl.scan_parquet(source).select(pl.col("text").embellama.embed(model))
frame.sink_parquet(output, row_group_size=2_000, compression="uncompressed")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def rss(folder: Path, n_rows: int, model_path: str) -> int:
    """Return the most memory of a process that embeds so many rows, few of which differ."""
    source, output = folder / f"{n_rows}.parquet", folder / f"{n_rows}-vectors.parquet"
    pl.DataFrame({"text": [f"text {n % 20}" for n in range(n_rows)]}).write_parquet(source, row_group_size=2_000)
    # By a small process: Linux counts the memory of its parent as its own.
    watch = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    command = [sys.executable, "-c", watch, sys.executable, "-c", PROGRAM]
    # As many slices are on their way as there are threads.
    result = run(*command, source, output, model_path, cwd=ROOT, env={**os.environ, "POLARS_MAX_THREADS": "2"})
    assert result.returncode == 0, result.stderr
    assert pl.scan_parquet(output).select(pl.len()).collect().item() == n_rows
    return int(result.stdout)


def test_a_frame_larger_than_its_share_of_memory_streams(model_path: str, tmp_path: Path) -> None:
    few, many = rss(tmp_path, FEW, model_path), rss(tmp_path, MANY, model_path)
    # What is on its way differs from run to run, by some 50 MB.
    assert many - few < (MANY - FEW) * 384 * 4 / 2
