"""What a batch (`--data-dir`) costs clients, and how much of idle workers it takes.

    .venv/bin/python -m benchmarks.batches --save     # and keeps it under benchmarks/results/

Clients with a short text each ask without a pause, alone and beside a batch in turns; the figure is the median of the
rounds' p99. Then nobody asks: of the time that passes, how much the workers compute of a batch.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from tests.conftest import Server, running_server

N_CLIENTS = (1, 8)
N_WORKERS = 2

# Enough for seconds of work, whatever the machine.
N_LINES = 40_000


def main() -> None:
    parser = argparse.ArgumentParser(description="What a batch costs clients, and how much of idle workers it takes.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--seconds", type=float, default=5, help="length of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-batches-CPU.json")
    options = parser.parse_args()
    requests = [[text] for text in texts.sentences()[:600]]
    flags = ("--model-path", options.model_path, "--model-name", "minilm", "--workers", str(N_WORKERS))
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "log", *flags, "--cache-bytes", "0", "--data-dir", f"{folder}/data") as server,
    ):

        def p99(n_clients: int) -> float:
            return load.run(server.url, "minilm", requests, n_clients, options.seconds).p99_ms

        for n in N_CLIENTS:
            alone, beside = [], []
            for _ in range(options.rounds):
                alone.append(p99(n))
                with batch(server):
                    beside.append(p99(n))
            found[f"{n} clients alone: p99 ms"] = round(statistics.median(alone), 2)
            found[f"{n} clients beside a batch: p99 ms"] = round(statistics.median(beside), 2)
            ratios = [b / a for a, b in zip(alone, beside, strict=True)]
            found[f"{n} clients: p99 beside to alone"] = round(statistics.median(ratios), 3)
        with batch(server):
            started, before = time.monotonic(), busy_s(server)
            time.sleep(options.seconds)
            idle = (busy_s(server) - before) / (time.monotonic() - started) / N_WORKERS
            found["share of idle workers' time"] = round(idle, 3)
    for name, value in found.items():
        print(f"{name:40} {value:8.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "seconds": options.seconds, "rounds": options.rounds, "found": found}
        path = result_base("batches", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def batch(server: Server) -> Iterator[None]:
    """Have a batch computed, from its first finished lines on until the block ends."""
    pool = texts.sentences()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        lines = (
            {
                "custom_id": str(i),
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": "minilm", "input": f"{pool[i % len(pool)]} {i}"},
            }
            for i in range(N_LINES)
        )
        content = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
        file = client.files.create(file=("lines.jsonl", content), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        while (counts := client.batches.retrieve(made.id).request_counts) is None or not counts.completed:
            time.sleep(0.05)
        yield
        client.batches.cancel(made.id)  # which also says that it was not done yet
        while client.batches.retrieve(made.id).status != "cancelled":
            time.sleep(0.05)


def busy_s(server: Server) -> float:
    """Return for how long the workers have computed, all together."""
    told = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in told if line.startswith("embellama_worker_busy_seconds_total"))


if __name__ == "__main__":
    main()
