"""What a text costs on its way to another server: as text with base64 back, as token ids with base64, and with bytes.

    .venv/bin/python -m benchmarks.remote            # prints a table
    .venv/bin/python -m benchmarks.remote --save     # and keeps it under benchmarks/results/

Requests of 64 sentences, one after another, to a server whose workers answer at once (`front.instant`). For each text:
bytes sent and received, and microseconds of the front's core and of the client's, by the CPU time of each. The client's
includes HTTP, and where ids are sent, the tokenizer.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
from embellama_server.workers.worker import HOOK

from benchmarks import texts
from benchmarks.compare import ROOT, machine, result_base, write
from benchmarks.front import cpu_s
from embellama.config import EngineConfig
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.remote.answers import RAW, SHAPE_HEADER, Inputs, RequestBody, rows_of, vectors_of
from tests.conftest import Server, running_server

N_TEXTS = 64
DIM = 384
MODEL = "minilm"

WAYS = ("texts, base64", "ids, base64", "ids, bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a text costs on its way to another server.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--requests", type=int, default=300, help="requests of one measure (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-remote-CPU.json")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "server")])  # workers import `front`
    os.environ[HOOK] = "benchmarks.front:instant"
    config = EngineConfig(model_path=options.model_path).checked()
    jobs = Jobs(config, Weights(config, vocab_only=True))
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    flags = ("--model-path", options.model_path, "--model-name", MODEL, "--workers", "1", "--cache-bytes", "0")
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "log", *flags) as server:
        for number in range(options.rounds + 1):
            for way in WAYS[:: 1 if number % 2 else -1]:
                costs = one_round(server, jobs, way, options.requests if number else 20)
                if number:  # the first one warms up
                    rounds[way].append(costs)
    found = {
        way: {name: statistics.median(each[name] for each in all_) for name in all_[0]} for way, all_ in rounds.items()
    }
    for way, costs in found.items():
        print(f"{way:16}" + "".join(f"{name} {value:8.1f}   " for name, value in costs.items()))
    if options.save:
        where = machine(options.model_path)
        path = result_base("remote", where["cpu"]).with_suffix(".json")
        result = {"machine": where, "texts a request": N_TEXTS, "medians for a text": found}
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def one_round(server: Server, jobs: Jobs, way: str, n_requests: int) -> dict[str, float]:
    """Send requests in one way, and return what a text of them costs."""
    pool = texts.sentences()
    asked = [[pool[(N_TEXTS * i + j) % len(pool)] for j in range(N_TEXTS)] for i in range(n_requests)]
    sent = received = 0
    with httpx.Client() as client:
        url = f"{server.url}/v1/embeddings"
        client.get(f"{server.url}/livez")
        front, own = cpu_s(server.process), time.process_time()
        for request in asked:
            content, accept, read = prepared(jobs, way, request)
            response = client.post(url, content=content, headers={"content-type": "application/json", **accept})
            assert response.status_code == 200, response.text
            read(response)
            sent, received = sent + len(content), received + len(response.content)
        front, own = cpu_s(server.process) - front, time.process_time() - own
    n = n_requests * N_TEXTS
    return {
        "bytes sent": sent / n,
        "bytes received": received / n,
        "front µs": 1e6 * front / n,
        "client µs": 1e6 * own / n,
    }


def prepared(
    jobs: Jobs, way: str, request: list[str]
) -> tuple[bytes, dict[str, str], Callable[[httpx.Response], object]]:
    """Return a request's body and headers, and what reads its answer, as `embellama.remote` does it."""
    inputs: Inputs = request
    if way != "texts, base64":
        inputs = [ids.tolist() for ids in jobs.encode(request).tokens]
    if way == "ids, bytes":
        body = RequestBody(MODEL, inputs)
        return (
            msgspec.json.encode(body),
            {"accept": RAW},
            lambda response: rows_of(response.content, response.headers[SHAPE_HEADER], N_TEXTS, DIM),
        )
    body = RequestBody(MODEL, inputs, encoding_format="base64")
    return msgspec.json.encode(body), {}, lambda response: vectors_of(response.content, N_TEXTS, DIM)


if __name__ == "__main__":
    main()
