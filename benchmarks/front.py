"""What the front costs: a server whose workers answer at once, so that everything but the model is left.

    .venv/bin/python -m benchmarks.front            # prints a table
    .venv/bin/python -m benchmarks.front --save     # and keeps it under benchmarks/results/

requests   single texts from 32 clients: requests a second, and what each costs the front's core
rows       requests of 256 texts from 4 clients: megabytes of rows a second, in batches of 192 tokens, which suit a
           CPU, and of 4096, which might suit a GPU
lone       one client: what dispatcher, queue and pipe add to a lone text
refusals   a full waiting room: what a 503 costs the front's core

Workers are real processes on real queues; only `EmbeddingModel.encode` is replaced (`instant`).
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import uvloop
from embellama_server.application import build
from embellama_server.config import ServerConfig
from embellama_server.workers.worker import HOOK

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from embellama.batch import Batch, Rows
from embellama.model import EmbeddingModel
from tests.conftest import Server, running_server


def instant(model: EmbeddingModel) -> None:
    """Have a worker answer at once, with rows made beforehand."""
    rows = np.random.default_rng(0).standard_normal((4096, model.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def encode(batch: Batch, n_threads: int | None = None) -> Rows:
        return rows[: batch.n_rows.sum()]

    model.encode = encode  # type: ignore[method-assign]


def sleepy(model: EmbeddingModel) -> None:
    """Have a worker take its time, so that the waiting room fills."""
    instant(model)
    answer = model.encode

    def encode(batch: Batch, n_threads: int | None = None) -> Rows:
        time.sleep(0.5)
        return answer(batch, n_threads)

    model.encode = encode  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the front costs, with workers that answer at once.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--seconds", type=float, default=5, help="length of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-front-CPU.json")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)  # workers import this file
    rounds = [one_round(options) for _ in range(options.rounds)]
    result = {
        "machine": machine(options.model_path),
        "options": {"seconds": options.seconds, "rounds": options.rounds},
        "medians": {key: statistics.median(each[key] for each in rounds) for key in rounds[0]},
    }
    for key, value in result["medians"].items():
        print(f"{key:48} {value:10.2f}")
    if options.save:
        path = result_base("front", result["machine"]["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def one_round(options: argparse.Namespace) -> dict[str, float]:
    pool = texts.sentences()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--model-path", options.model_path, "--model-name", "minilm", "--workers", "2", "--cache-bytes", "0")
        os.environ[HOOK] = f"{__name__ if __name__ != '__main__' else 'benchmarks.front'}:instant"
        with running_server(Path(folder) / "log", *flags) as server:
            for name, requests, n_clients in (
                ("32 clients × 1 text", [[text] for text in pool[:600]], 32),
                ("4 clients × 256 texts", [pool[:256]], 4),
                ("1 client × 1 text", [[text] for text in pool[:600]], 1),
            ):
                found |= loaded(name, server, requests, n_clients, options.seconds)
        with running_server(Path(folder) / "log1", *flags, "--max-batch-tokens", "4096") as server:
            found |= loaded("4 clients × 256 texts, large batches", server, [pool[:256]], 4, options.seconds)
        os.environ[HOOK] = "benchmarks.front:sleepy"
        with running_server(Path(folder) / "log2", *flags, "--queue-size", "1") as server:
            found |= loaded("refusals, 32 clients", server, [[text] for text in pool[:600]], 32, options.seconds)
        os.environ[HOOK] = "benchmarks.front:instant"
        found |= asyncio.Runner(loop_factory=uvloop.new_event_loop).run(dispatch(options.model_path))
        del os.environ[HOOK]
    return found


def loaded(name: str, server: Server, requests: list[list[str]], n_clients: int, seconds: float) -> dict[str, float]:
    """Load a server and see what it answered, and what that cost its front."""
    load.run(server.url, "minilm", requests, n_clients, 0.5)
    before, start = cpu_s(server.process), time.perf_counter()
    measured = load.run(server.url, "minilm", requests, n_clients, seconds)
    took, cost = time.perf_counter() - start, cpu_s(server.process) - before
    bytes_a_text = 4 * 384
    return {
        f"{name}: requests/s": measured.requests / took,
        f"{name}: front's µs a request": 1e6 * cost / measured.requests,
        f"{name}: MB/s of rows": measured.texts_per_s * bytes_a_text / 1e6,
        f"{name}: p50 ms": measured.p50_ms,
        f"{name}: failed": measured.failed,
    }


async def dispatch(model_path: str) -> dict[str, float]:
    """Give the dispatcher lone texts, and see how long until their rows are there."""
    server = build(ServerConfig(model_path=model_path, model_name="minilm", num_workers=2).checked())
    model = server.model(None)
    model.dispatcher.start()
    while model.dispatcher.state.status != "ok":  # noqa: ASYNC110 - the pool tells no one else
        await asyncio.sleep(0.05)
    job = model.jobs.encode(["A short text."])
    took = []
    for _ in range(2000):
        start = time.perf_counter()
        await model.dispatcher.submit(job.tokens, deadline=asyncio.get_running_loop().time() + 30)
        took.append(time.perf_counter() - start)
    await model.dispatcher.close()
    return {"dispatcher, queue, pipe and worker: p50 ms": 1000 * statistics.median(took)}


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
