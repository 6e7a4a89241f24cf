"""How fast a request log is read: lines that are made up, a week of four servers, and `embellama stats` over them.

    .venv/bin/python -m benchmarks.records --save           # 10 million lines, 4 GB in a temporary folder
    .venv/bin/python -m benchmarks.records --lines 100000

Each command runs as a process of its own, in turns; seconds are medians, with the files in the system's memory as far
as they fit there. Percentiles are compared with NumPy's of all latencies.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.compare import ROOT, machine, result_base, write
from embellama.records.line import VERSION, RequestLine, file_name

DAYS, SERVERS = 7, 4
COMMANDS = {
    "all": [],
    "by model": ["--by", "model"],
    "by key": ["--by", "key"],
    "with a chart": ["--by", "model", "--chart", "chart.svg"],
    "compared": ["--compare", "minilm", "bge"],
}
KEYS = [f"team{i}" for i in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast a request log is read.")
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-records-CPU.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latencies = generate(Path(folder) / "log", options.lines)
        n_bytes = sum(path.stat().st_size for path in (Path(folder) / "log").iterdir())
        seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
        memory: dict[str, float] = {}
        for _ in range(options.rounds):
            for name, flags in COMMANDS.items():
                took, memory[name] = run(folder, *flags)
                seconds[name].append(took)
        found = json.loads(subprocess.check_output([*command("log"), "--json"], cwd=folder, env=environment()))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    total = found["total"]
    exact = np.percentile(latencies, [50, 95, 99]).tolist()
    errors = [abs(total[f"p{p}_ms"] / ms - 1) for p, ms in zip((50, 95, 99), exact, strict=True)]
    assert total["requests"] == options.lines
    for name, took in medians.items():
        print(f"{name:14} {took:6.2f} s   {memory[name]:6.0f} MB")
    print(f"{n_bytes / options.lines:.0f} bytes a line; percentiles are wrong by {100 * max(errors):.3f}% at most")
    if options.save:
        where = machine(str(ROOT / "models" / "minilm.gguf"))
        result = {"machine": where, "lines": options.lines, "bytes": n_bytes, "seconds": medians, "peak_mb": memory}
        result["percentile_errors"] = errors
        path = result_base("records", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def generate(folder: Path, n: int) -> NDArray[np.float64]:
    """Write lines of the last days; return the latencies of those that succeeded."""
    folder.mkdir()
    random = np.random.default_rng(0)
    today = datetime.datetime.now(datetime.UTC).date()
    good = []
    for day in range(DAYS):
        for server in range(SERVERS):
            place = day * SERVERS + server
            n_here = n * (place + 1) // (DAYS * SERVERS) - n * place // (DAYS * SERVERS)
            name = file_name(str(today - datetime.timedelta(days=DAYS - day)), f"{server:016x}")
            good.append(_write(folder / name, random, n_here))
    return np.concatenate(good)


def _write(path: Path, random: np.random.Generator, n: int) -> NDArray[np.float64]:
    day = path.name[9:19]
    seconds = np.sort(random.uniform(0, 86_400, n)).tolist()
    latencies = np.exp(random.normal(2.5, 1, n)).round(3)
    status = np.where(random.random(n) < 0.01, 503, 200)
    tokens = random.integers(5, 40, n)
    cached = np.where(random.random(n) < 0.2, tokens, 0).tolist()
    places = random.integers(0, len(KEYS), n).tolist()
    with path.open("wb") as file:
        for i, (second, ms, code) in enumerate(zip(seconds, latencies.tolist(), status.tolist(), strict=True)):
            whole, part = divmod(int(1000 * second), 1000)
            line = RequestLine(
                v=VERSION,
                time=f"{day}T{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{part:03}Z",
                id=f"0123456789abcdef-{i:x}",
                path="/v1/embeddings",
                status=code,
                error="overloaded" if code == 503 else "",
                total_ms=ms,
                tokenization_ms=round(0.02 * ms, 3),
                queue_ms=round(0.3 * ms, 3),
                inference_ms=round(0.6 * ms, 3),
                encoding_ms=round(0.08 * ms, 3),
                key=KEYS[places[i]],
                client="10.0.0.12",
                model=("minilm", "bge")[i % 2],
                weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                n_texts=1,
                n_tokens=int(tokens[i]),
                n_cached_tokens=cached[i],
                hashes=["842b7d9d43cddf75"],
            )
            file.write(msgspec.json.encode(line) + b"\n")
    found: NDArray[np.float64] = latencies[status == 200]
    return found


def command(folder: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from embellama.cli.main import main; main()",
        "stats",
        folder,
        "--days",
        str(DAYS + 1),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: str, *flags: str) -> tuple[float, float]:
    """Run `embellama stats`; return its seconds, and the most memory it had, in megabytes."""
    start = time.perf_counter()
    process = subprocess.Popen([*command("log"), *flags], cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - start, usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
