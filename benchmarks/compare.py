"""Raw llama.cpp, the library and the server, side by side in one run.

    scripts/bench                                             # prints a table
    scripts/bench --save                                      # and keeps it under benchmarks/results/
    scripts/bench --url llama-server=http://127.0.0.1:8081    # another OpenAI-compatible server beside ours

Every round measures each thing once, in turn, so that a machine whose speed drifts drifts for all of them; the table
gives medians over the rounds, of ratios too.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import psutil

from benchmarks import load, texts
from benchmarks.raw import Raw, Tokens
from embellama import EmbeddingEngine, EmbeddingModel, EngineConfig

ROOT = Path(__file__).parent.parent
RAW_BUDGETS = (64, 96, 128, 192, 256, 512)
LOADS = ("1 × 1", "32 × 1", "4 × 32", "32 × 1 mixed")  # clients × texts in each request


Measure = Callable[[], dict[str, float]]
Round = dict[str, dict[str, float]]  # each measure's figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Raw llama.cpp, the library and the server, side by side in one run.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--workers", type=int, default=2, help="contexts and worker processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one load (default: %(default)s)")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL", help="measure another server too")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-compare-CPU.json and .md")
    options = parser.parse_args()
    config = EngineConfig(
        model_path=options.model_path, model_name="minilm", num_workers=options.workers, cache_bytes=0
    )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(our_server(options.model_path, "--workers", str(options.workers)))
        urls = {"server": server[0], **dict(url.split("=", 1) for url in options.url)}
        budgets, measures = prepare(config, stack)
        for name, url in urls.items():
            measures |= loads(name, url, options.seconds)
        rounds = rounds_of(measures, options.rounds)
    result: dict[str, Any] = {
        "machine": machine(options.model_path),
        "options": {"workers": options.workers, "rounds": options.rounds, "seconds": options.seconds},
        "raw_max_batch_tokens": budgets,
        "rounds": rounds,
        "medians": medians_of(rounds),
    }
    table = render(result)
    print(table)
    if options.save:
        base = result_base("compare", result["machine"]["cpu"])
        write(base.with_suffix(".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write(base.with_suffix(".md"), table)


def prepare(config: EngineConfig, stack: contextlib.ExitStack) -> tuple[dict[str, int], dict[str, Measure]]:
    """Load the model for raw llama.cpp and for the library; return raw's best batch sizes, and what to measure."""
    pool = texts.sentences()
    kinds = {"short": pool[:600], "mixed": texts.mixed(pool, 100), "long": texts.joined(pool, [10] * 60)}
    engine = stack.enter_context(EmbeddingEngine(config))
    encode = stack.enter_context(EmbeddingModel(config)).tokenizer.encode
    raw = Raw(config.model_path, config.num_workers, 1)
    raw_alone = Raw(config.model_path, 1, config.num_workers)
    budgets: dict[str, int] = {}
    measures: dict[str, Measure] = {}
    for kind, batch in kinds.items():
        tokens = encode(batch).tokens
        budgets[kind] = best_budget(raw, tokens)
        measures[f"raw, {kind}"] = functools.partial(raw_rate, raw, tokens, budgets[kind])
        measures[f"library, {kind}"] = functools.partial(library_rate, engine, batch)
    measures["raw, 1 × 1"] = functools.partial(raw_latency, raw_alone, encode(pool[:100]).tokens)
    return budgets, measures


def loads(name: str, url: str, seconds: float) -> dict[str, Measure]:
    """Return what to ask of a server: requests of so many texts from so many clients."""
    pool = texts.sentences()
    short = [[text] for text in pool[:600]]
    asked: list[tuple[list[list[str]], int]] = [
        (short, 1),
        (short, 32),
        ([pool[i : i + 32] for i in range(0, 576, 32)], 4),
        ([[text] for text in texts.mixed(pool, 100)], 32),
    ]
    return {
        f"{name}, {load}": functools.partial(server_rate, url, *what, seconds)
        for load, what in zip(LOADS, asked, strict=True)
    }


def rounds_of(measures: dict[str, Measure], n_rounds: int) -> list[Round]:
    """Measure everything `n_rounds` times, in turn."""
    return [one_round(measures) for _ in range(n_rounds)]


def medians_of(rounds: list[Round]) -> Round:
    """Return the median of each figure of each measure."""
    return {
        name: {key: statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]} for name in rounds[0]
    }


def ratio(rounds: list[Round], name: str, to: str, key: str = "texts_per_s") -> float:
    """Return the median over rounds of one measure's figure to another's: the machine's speed drifts between rounds."""
    return statistics.median(r[name][key] / r[to][key] for r in rounds)


def one_round(measures: dict[str, Measure]) -> Round:
    results = {}
    for name, run in measures.items():
        results[name] = run()
        print(f"{name:28} " + "  ".join(f"{k} {v:.1f}" for k, v in results[name].items()), file=sys.stderr)
    return results


def raw_rate(raw: Raw, tokens: list[Tokens], budget: int) -> dict[str, float]:
    return {"texts_per_s": raw.texts_per_second(tokens, budget)}


def raw_latency(raw: Raw, tokens: list[Tokens]) -> dict[str, float]:
    """One text a call, on all threads: what a lone client could get at best."""
    ms = statistics.median(1000 / raw.texts_per_second([text], 512) for text in tokens)
    return {"texts_per_s": 1000 / ms, "p50_ms": ms}


def library_rate(engine: EmbeddingEngine, batch: list[str]) -> dict[str, float]:
    start = time.perf_counter()
    engine.embed_batch("minilm", batch)
    return {"texts_per_s": len(batch) / (time.perf_counter() - start)}


def server_rate(url: str, requests: list[list[str]], n_clients: int, seconds: float) -> dict[str, float]:
    measured = load.run(url, "minilm", requests, n_clients, seconds)
    return {
        "texts_per_s": measured.texts_per_s,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "failed": measured.failed,
    }


def best_budget(raw: Raw, tokens: list[Tokens]) -> int:
    """Find the batch size at which raw llama.cpp is fastest, so that it is compared at its best."""
    return max(
        RAW_BUDGETS, key=lambda budget: statistics.median(raw.texts_per_second(tokens, budget) for _ in range(3))
    )


@contextlib.contextmanager
def our_server(model_path: str, *flags: str) -> Iterator[tuple[str, psutil.Popen]]:
    """Start embellama-server on a free port, without a cache, wait until it is ready, and give its URL and process."""
    command = str(Path(sys.executable).parent / "embellama-server")
    settings = ["--model-path", model_path, "--model-name", "minilm", "--port", "0", "--cache-bytes", "0"]
    process = psutil.Popen([command, *settings, *flags], stderr=subprocess.PIPE, text=True)
    try:
        found = None
        for line in process.stderr:
            found = found or re.search(r"listening on (http://\S+)", line)
            if found and " ready in " in line:
                break
        assert found, "the server did not start"
        while httpx.get(f"{found[1]}/health").json()["status"] != "ok":
            time.sleep(0.05)
        yield found[1], process
    finally:
        process.terminate()
        process.communicate()


def machine(model_path: str) -> dict[str, Any]:
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if os.path.exists("/proc") else None
    packages = ("embellama", "llama-cpp-python", "numpy", "starlette", "uvicorn", "uvloop")
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "model": Path(model_path).resolve().name,
        "llama_cpp_compiler": compiler(),
        "versions": {name: version(name) for name in packages},
    }


def compiler() -> str:
    """Return what built llama-cpp-python's llama.cpp, which shows in whose OpenMP it links."""
    [library] = (Path(llama_cpp.__file__).parent / "lib").glob("libggml-cpu.*so")
    names = {b"libomp.": "clang", b"libgomp.": "GCC"}
    return next((name for mark, name in names.items() if mark in library.read_bytes()), "an unknown compiler")


def render(result: dict[str, Any]) -> str:
    medians, what = result["medians"], result["machine"]
    limits = {"1 × 1": "raw, 1 × 1", "mixed": "raw, mixed", "long": "raw, long"}

    def of_raw(name: str) -> str:
        limit = next((raw for key, raw in limits.items() if name.endswith(key)), "raw, short")
        return f"{ratio(result['rounds'], name, limit):.2f}"

    lines = [
        f"{what['cpu']}, {what['cores']} cores; {what['model']}; llama.cpp built with {what['llama_cpp_compiler']}; "
        f"Python {what['python']}; "
        + ", ".join(f"{k} {v}" for k, v in what["versions"].items())
        + f". Medians of {result['options']['rounds']} rounds, {result['options']['workers']} workers; "
        "raw's best batches: "
        + ", ".join(f"{kind} texts {budget} tokens" for kind, budget in result["raw_max_batch_tokens"].items())
        + ".",
        "",
        "| what | texts/s | of raw | p50 ms | p99 ms | failed |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in medians.items():
        cells = [f"{row[key]:.1f}" if key in row else "" for key in ("p50_ms", "p99_ms")]
        failed = f"{row['failed']:.0f}" if "failed" in row else ""
        lines.append(f"| {name} | {row['texts_per_s']:.0f} | {of_raw(name)} | {cells[0]} | {cells[1]} | {failed} |")
    to_library = ratio(result["rounds"], "server, 32 × 1", "library, short")
    lines += ["", f"Server at 32 × 1 against the library on short texts: {to_library:.2f}."]
    return "\n".join(lines) + "\n"


def result_base(name: str, cpu: str) -> Path:
    """Return where a result of today on this CPU is kept, but for the ending."""
    return (
        ROOT
        / "benchmarks"
        / "results"
        / f"{datetime.date.today()}-{name}-{re.sub(r'[^a-z0-9]+', '-', cpu.lower()).strip('-')}"
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(f"saved {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
