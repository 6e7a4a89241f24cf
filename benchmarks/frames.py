"""What `embellama.polars` takes: time beside `embed_batch`, memory that does not grow with a frame, and for a schema.

    .venv/bin/python -m benchmarks.frames --save     # and keeps it under benchmarks/results/

Rate: a frame of which two rows in five repeat an earlier one, and `embed_batch` of the texts that differ, in turns; the
figure is the median of the rounds' ratios. Both have what computes loaded, and each frame an engine that knows no text.
Memory: the largest resident set of a process that streams few rows and many, and makes one number of all vectors, or
writes them to a file (Polars' own buffers for that come on top). Few texts differ, so that it is about vectors and not
about computing. Schema: to make the expression, and to ask for its type.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

import embellama.polars  # noqa: F401
from benchmarks.bulk import sentences
from benchmarks.compare import ROOT, machine, result_base, write
from embellama import EmbeddingEngine, EngineConfig
from embellama.frames.models import CACHE_BYTES

DUPLICATES = 0.4
N_DIFFERENT = 100
FEW = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description="What embellama.polars takes.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=50_000, help="rows of one measure of the rate (default: %(default)s)"
    )
    parser.add_argument("--many", type=int, default=1_000_000, help="rows that are streamed (default: %(default)s)")
    parser.add_argument("--stream", nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-frames-CPU.json")
    options = parser.parse_args()
    if options.stream:
        source, output = options.stream
        stream(source, output, options.model_path)
        return
    found = rate(options.model_path, options.rows, options.rounds) | schema(options.model_path, 9)
    found |= memory(options.model_path, options.many)
    for name, value in found.items():
        print(f"{name:60} {value:10.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "rows": options.rows, "polars": pl.__version__, "found": found}
        path = result_base("frames", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def rate(model_path: str, n_rows: int, n_rounds: int) -> dict[str, float]:
    """Compare eager and streaming frames with `embed_batch`."""
    different = list(sentences(round(n_rows * (1 - DUPLICATES)), n_rows))
    chosen = random.Random(0)
    rows = different + [chosen.choice(different) for _ in range(n_rows - len(different))]
    chosen.shuffle(rows)
    frame, batch = pl.DataFrame({"text": rows}), list(dict.fromkeys(rows))
    seconds: dict[str, list[float]] = {"embed_batch": [], "eager": [], "streaming": []}
    for number in range(n_rounds):
        in_turn = list(seconds)
        for name in in_turn[:: 1 if number % 2 else -1]:
            seconds[name].append(_seconds(name, frame, batch, model_path))
    found = {f"{name}: different texts/s": len(batch) / statistics.median(took) for name, took in seconds.items()}
    for name in ("eager", "streaming"):
        ratios = [plain / took for plain, took in zip(seconds["embed_batch"], seconds[name], strict=True)]
        found[f"{name}: rate to embed_batch"] = statistics.median(ratios)
        found[f"{name}: rate to embed_batch, least"] = min(ratios)
        found[f"{name}: rate to embed_batch, most"] = max(ratios)
    return found


def _seconds(name: str, frame: pl.DataFrame, batch: list[str], model_path: str) -> float:
    config = EngineConfig(model_path=model_path, cache_bytes=0 if name == "embed_batch" else CACHE_BYTES)
    with EmbeddingEngine(config) as engine:
        engine.embed_batch(None, [f"warm {number}" for number in range(200)])
        expr: pl.Expr = pl.col("text").embellama.embed(engine)  # type: ignore[attr-defined]
        started = time.perf_counter()
        if name == "embed_batch":
            engine.embed_batch(None, batch)
        elif name == "eager":
            frame.select(expr)
        else:
            frame.lazy().select(expr).collect(engine="streaming")
        return time.perf_counter() - started


def schema(model_path: str, n_rounds: int) -> dict[str, float]:
    """Time what comes before anything runs."""
    frame, making, asking = pl.LazyFrame({"text": ["red"]}), [], []
    for _ in range(n_rounds):
        started = time.perf_counter()
        expr: pl.Expr = pl.col("text").embellama.embed(model_path)  # type: ignore[attr-defined]
        made = time.perf_counter()
        frame.select(expr).collect_schema()
        making.append(made - started)
        asking.append(time.perf_counter() - made)
    return {
        "making the expression: ms": 1e3 * statistics.median(making),
        "collect_schema: ms": 1e3 * statistics.median(asking),
        "both, the first time: ms": 1e3 * (making[0] + asking[0]),
    }


def memory(model_path: str, n_many: int) -> dict[str, float]:
    """Compare the memory for few rows and for many."""
    with tempfile.TemporaryDirectory() as name:
        sizes = {
            (to, n_rows): _rss(Path(name), n_rows, model_path, to)
            for to in ("number", "file")
            for n_rows in (FEW, n_many)
        }
    found = {f"{n_rows} rows to a {to}: MB": n_bytes / 1e6 for (to, n_rows), n_bytes in sizes.items()}
    for to in ("number", "file"):
        found[f"{n_many} rows to a {to}: memory to that of {FEW}"] = sizes[to, n_many] / sizes[to, FEW]
    return found


def _rss(folder: Path, n_rows: int, model_path: str, to: str) -> int:
    source, output = folder / f"{n_rows}.parquet", folder / f"{n_rows}-vectors.parquet"
    pl.DataFrame({"text": [*sentences(n_rows, N_DIFFERENT)]}).write_parquet(source, row_group_size=10_000)
    # By a small process: Linux counts the memory of its parent as its own.
    watch = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    command = [sys.executable, "-m", "benchmarks.frames", "--model-path", model_path]
    command += ["--stream", str(source), str(output) if to == "file" else ""]
    told = subprocess.run([sys.executable, "-c", watch, *command], check=True, capture_output=True, text=True, cwd=ROOT)
    return int(told.stdout)


def stream(source: str, output: str, model_path: str) -> None:
    """Embed a file, in slices of 10,000 rows, into another or, with "", into a sum; print the most memory in bytes."""
    with pl.Config(streaming_chunk_size=10_000):
        expr: pl.Expr = pl.col("text").embellama.embed(model_path)  # type: ignore[attr-defined]
        frame = pl.scan_parquet(source).select(expr)
        if output:
            frame.sink_parquet(output, row_group_size=10_000, compression="uncompressed")
        else:
            frame.select(pl.col("text").arr.first().sum()).collect(engine="streaming")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
