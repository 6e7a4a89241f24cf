"""The default model's format: what measuring chooses, beside what the CPU's flags chose before.

    .venv/bin/python -m benchmarks.default --save

Makes the faithful formats as `scripts/download_models.py` does, and measures them as often as there are rounds, each
time as it does once: 10 s, new processes. Rounds in which other programs took more than 5% of the CPU do not count. A
round's ratio is the speed of what it chose to that of what the flags say.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import compare
from benchmarks.compare import ROOT
from benchmarks.peers import MAX_OTHERS, busy_s
from embellama.advice import bench
from embellama.advice.formats import FAITHFUL, fastest_faithful
from embellama.advice.report import Row

FORMATS = ("f32", "f16", "bf16")
SECONDS = 10.0

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description="The default model's format, as measured and by the CPU's flags.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-default-CPU.json and .md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [made(dtype, folder) for dtype in FORMATS]
        rounds = [undisturbed_round(paths) for _ in range(options.rounds)]
        machine = compare.machine(paths[0])
    before = by_flags()
    chosen = [best.format for rows in rounds if (best := fastest_faithful(rows))]
    ratios = [speed(rows, after) / speed(rows, before) for rows, after in zip(rounds, chosen, strict=True)]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; all-MiniLM-L6-v2; llama-cpp-python "
        f"{machine['versions']['llama-cpp-python']} ({machine['llama_cpp_compiler']}). Short texts, a context for each "
        f"core; {len(rounds)} rounds of {SECONDS:.0f} s, medians.",
        "",
        "| format | texts/s | to f16 | worst cosine to f32 |",
        "|---|---|---|---|",
        *(table_row(rounds, format) for format in FORMATS),
        "",
        f"By the CPU's flags: {before}. By measuring (the fastest with cosine ≥ {FAITHFUL}): "
        f"{', '.join(f'{name} in {chosen.count(name)} of {len(chosen)} rounds' for name in sorted(set(chosen)))}. "
        f"After to before: {statistics.median(ratios):.2f}.",
    ]
    print("\n".join(lines))
    if options.save:
        base = compare.result_base("default", machine["cpu"])
        found = [
            {row.format: {"texts_per_s": row.texts_per_s, "cosine": row.worst_cosine} for row in r} for r in rounds
        ]
        result = {"machine": machine, "by_flags": before, "chosen": chosen, "ratios": ratios, "rounds": found}
        compare.write(base.with_suffix(".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        compare.write(base.with_suffix(".md"), "\n".join(lines) + "\n")


def made(dtype: str, folder: str) -> str:
    """Make the default model in one format."""
    command = [sys.executable, str(ROOT / "scripts" / "download_models.py"), "--dtype", dtype, "--dest", folder]
    return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).splitlines()[-1]


def undisturbed_round(paths: list[str]) -> list[Row]:
    """Measure once, or as often as other programs disturb it; start when they leave the machine alone."""
    while True:
        while others(lambda: time.sleep(1))[1] > MAX_OTHERS:
            pass
        rows, share = others(lambda: bench.compare(paths, SECONDS, lambda: None))
        if share <= MAX_OTHERS:
            return rows
        print(f"other programs took {share:.0%} of the CPU: once more", file=sys.stderr)


def others(run: Callable[[], Result]) -> tuple[Result, float]:
    """Call `run`; return its result, and the share of the CPU that other programs took meanwhile."""
    start, before = time.perf_counter(), busy_s() - sum(os.times()[:4])
    result = run()
    taken = busy_s() - sum(os.times()[:4]) - before
    return result, taken / (time.perf_counter() - start) / (os.cpu_count() or 1)


def by_flags() -> str:
    """Return what `scripts/download_models.py` chose before it measured."""
    cpu = Path("/proc/cpuinfo").read_text()
    return "bf16" if re.search(r"^flags.* (avx512_bf16|amx_bf16)\b", cpu, re.MULTILINE) else "f16"


def speed(rows: list[Row], format: str) -> float:
    return next(row.texts_per_s for row in rows if row.format == format)


def table_row(rounds: list[list[Row]], format: str) -> str:
    rate = statistics.median(speed(rows, format) for rows in rounds)
    to_f16 = statistics.median(speed(rows, format) / speed(rows, "f16") for rows in rounds)
    cosine = min(row.worst_cosine for rows in rounds for row in rows if row.format == format)
    return f"| {format} | {rate:.0f} | {to_f16:.2f} | {cosine:.6f} |"


if __name__ == "__main__":
    main()
