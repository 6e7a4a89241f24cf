"""How long one caller with one client waits beside another caller with many.

    .venv/bin/python -m benchmarks.fairness [--save]

Each client asks a dispatcher for one text of one sentence, and again as soon as it has its row: one client alone,
beside 64 of another caller, and beside 64 of its own caller, where nothing is shared evenly. In turns, so that a
machine whose speed drifts drifts for all three. Workers and model are real; there is no HTTP, and clients share the
event loop.
"""

import argparse
import asyncio
import datetime
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from embellama_server.application import build
from embellama_server.config import ServerConfig

from benchmarks import texts
from benchmarks.compare import ROOT, machine
from embellama.backend import Backend, Caller
from embellama.batch import Tokens

ONE, MANY = Caller("one"), Caller("many")


def main() -> None:
    parser = argparse.ArgumentParser(description="How long one client waits beside another caller's many.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--clients", type=int, default=64, help="of the other caller (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one load (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-fairness-CPU.json")
    options = parser.parse_args()
    result = {"machine": machine(options.model_path), **uvloop.run(measure(options))}
    print(json.dumps(result, indent=1))
    if options.save:
        cpu = re.sub(r"[^a-z0-9]+", "-", result["machine"]["cpu"].lower()).strip("-")
        path = Path(__file__).parent / "results" / f"{datetime.date.today()}-fairness-{cpu}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the three loads in turns, and return the latencies of the one client and the rows of all."""
    config = ServerConfig(model_path=options.model_path, model_name="minilm", num_workers=options.workers).checked()
    model = build(config).model(None)
    tokens = list(model.jobs.encode(texts.sentences()[:600]).tokens)
    model.dispatcher.start()
    while model.dispatcher.state.status != "ok":  # noqa: ASYNC110 - the pool tells no one else
        await asyncio.sleep(0.05)
    loads = {
        "alone": (0, MANY),
        f"beside {options.clients} clients of another caller": (options.clients, MANY),
        f"beside {options.clients} clients of the same caller": (options.clients, ONE),
    }
    latencies: dict[str, list[float]] = {name: [] for name in loads}
    n_rows = dict.fromkeys(loads, 0)
    for _ in range(options.rounds):
        for name, (n_clients, caller) in loads.items():
            end = time.perf_counter() + options.seconds
            clients = [ask(model.dispatcher, tokens, i, ONE if i == 0 else caller, end) for i in range(n_clients + 1)]
            first, *others = await asyncio.gather(*clients)
            latencies[name] += first
            n_rows[name] += len(first) + sum(map(len, others))
    await model.dispatcher.close()
    alone = np.percentile(latencies["alone"], 99)
    return {
        "workers": options.workers,
        "max_batch_tokens": model.config.max_batch_tokens,
        "loads": {
            name: {
                "requests": len(times),
                "p50_ms": round(float(np.percentile(times, 50)) * 1000, 2),
                "p99_ms": round(float(np.percentile(times, 99)) * 1000, 2),
                "p99_of_alone": round(float(np.percentile(times, 99) / alone), 2),
                "rows_per_s_of_all": round(n_rows[name] / (options.rounds * options.seconds)),
            }
            for name, times in latencies.items()
        },
    }


async def ask(
    backend: Backend["asyncio.Future[Any]"], tokens: list[Tokens], first: int, caller: Caller, end: float
) -> list[float]:
    """Ask for one text after another until `end`; return the seconds that each took."""
    times: list[float] = []
    for text in itertools.cycle(tokens[first:] + tokens[:first]):
        start = time.perf_counter()
        if start >= end:
            return times
        await backend.submit([text], caller=caller)
        times.append(time.perf_counter() - start)
    raise AssertionError("cycle has no end")


if __name__ == "__main__":
    main()
