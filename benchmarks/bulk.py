"""What `embellama bulk` takes: memory that does not grow with the input, and time beside `embed_batch`.

    .venv/bin/python -m benchmarks.bulk --save     # and keeps it under benchmarks/results/

Rate: the command and `embed_batch` embed the same distinct sentences in turns; the figure is the median of the rounds'
ratios, the command's whole run counted, its start too. Memory: the largest resident set of the command for few rows and
for many, of which all or only a few texts differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import texts
from benchmarks.compare import ROOT, machine, result_base, write
from embellama import EmbeddingEngine, EngineConfig
from tests.conftest import BIN

# Texts that differ among those of which many are equal.
N_REPEATED = 100

FEW = 10_000


class Run(NamedTuple):
    """A run of the command: seconds, and the bytes of its largest resident set."""

    seconds: float
    rss_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description="What embellama bulk takes.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=40_000, help="rows of one measure of the rate (default: %(default)s)"
    )
    parser.add_argument("--distinct", type=int, default=100_000, help="rows of different texts (default: %(default)s)")
    parser.add_argument("--repeated", type=int, default=1_000_000, help="rows of equal texts (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-bulk-CPU.json")
    options = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found |= rate(folder, options.model_path, options.rows, options.rounds)
        few = bulk(lines(folder, FEW, FEW), options.model_path)
        for kind, n_rows, n_texts in (
            ("distinct", options.distinct, options.distinct),
            ("repeated", options.repeated, N_REPEATED),
        ):
            many = bulk(lines(folder, n_rows, n_texts), options.model_path)
            found[f"{n_rows} {kind} rows: seconds"] = round(many.seconds, 1)
            found[f"{n_rows} {kind} rows: MB"] = many.rss_bytes / 1e6
            found[f"{n_rows} {kind} rows: memory to that of {FEW}"] = round(many.rss_bytes / few.rss_bytes, 3)
    for name, value in found.items():
        print(f"{name:50} {value:10.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "rows": options.rows, "found": found}
        path = result_base("bulk", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def rate(folder: Path, model_path: str, n_rows: int, n_rounds: int) -> dict[str, float]:
    """Compare the command with `embed_batch`."""
    batch = list(sentences(n_rows, n_rows))
    source = lines(folder, n_rows, n_rows)
    ratios = []
    with EmbeddingEngine(EngineConfig(model_path=model_path, cache_bytes=0)) as engine:
        engine.embed_batch(None, batch[:1000])
        for _ in range(n_rounds):
            started = time.perf_counter()
            engine.embed_batch(None, batch)
            ratios.append((time.perf_counter() - started) / bulk(source, model_path).seconds)
    return {
        "rate to embed_batch": round(statistics.median(ratios), 3),
        "rate to embed_batch, least": round(min(ratios), 3),
        "rate to embed_batch, most": round(max(ratios), 3),
    }


def bulk(source: Path, model_path: str) -> Run:
    """Run the command to its end, started by a small process: Linux counts the memory of its parent as its own."""
    output = source.with_suffix(".npy")
    command: list[str | Path] = [
        BIN / "embellama",
        "bulk",
        source,
        "-o",
        output,
        "--overwrite",
        "--model-path",
        model_path,
    ]
    watch = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    rss = subprocess.run([sys.executable, "-c", watch, *command], check=True, capture_output=True, text=True).stdout
    return Run(time.perf_counter() - started, int(rss) * 1024)


def lines(folder: Path, n_rows: int, n_texts: int) -> Path:
    """Write rows of so many different texts as JSON lines."""
    path = folder / f"{n_rows}-{n_texts}.jsonl"
    with path.open("wb") as file:
        for text in sentences(n_rows, n_texts):
            file.write(msgspec.json.encode({"text": text}) + b"\n")
    return path


def sentences(n_rows: int, n_texts: int) -> Iterator[str]:
    """Give sentences of which so many differ."""
    pool = texts.sentences()
    for row in range(n_rows):
        number = row % n_texts
        yield f"{pool[number % len(pool)]} {number // len(pool) or ''}".rstrip()


if __name__ == "__main__":
    main()
