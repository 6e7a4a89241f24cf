"""What Ray Serve costs: two replicas beside two plain servers behind HAProxy, each with one worker, in turns.

    .venv/bin/python -m benchmarks.ray_serve --save     # and keeps it under benchmarks/results/

Both are there all the time, on the same cores; the one that is not asked takes what it takes when idle. HAProxy's
configuration is that of deploy/haproxy. Texts differ and no row is kept. With RAY_SERVE_ENABLE_HA_PROXY=1 Serve runs a
HAProxy of its own in the place of its proxy in Python.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
from embellama_server.ray import deployment_of, settings_of
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from tests.conftest import running_server
from tests.deploy.balancers import running_balancer
from tests.programs import free_port

# Clients, and texts in each request.
LOADS = {"1 × 1": (1, 1), "32 × 1": (32, 1), "4 × 32": (4, 32)}


def main() -> None:
    parser = argparse.ArgumentParser(description="What Ray Serve costs.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="length of one load (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-ray-serve-CPU.json")
    options = parser.parse_args()
    path = os.path.abspath(options.model_path)
    with plain(path) as plain_url, served(path) as serve_url:
        found = measured({"HAProxy": plain_url, "Serve": serve_url}, options.rounds, options.seconds)
    for name, value in found.items():
        print(f"{name:50} {value:10.3f}")
    if options.save:
        where = machine(path)
        proxy = "haproxy" if RAY_SERVE_ENABLE_HA_PROXY else "python"
        facts = {"ray": ray.__version__, "proxy": proxy, "seconds": options.seconds}
        result = {"machine": where, **facts, "found": found}
        base = result_base(f"ray-serve-{proxy}", where["cpu"]).with_suffix(".json")
        write(base, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def plain(path: str) -> Iterator[str]:
    """Run two servers behind HAProxy; give its address."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, ports = Path(name), (free_port(), free_port())
        for port in ports:
            flags = ("--model-path", path, "--workers", "1", "--n-threads", "1", "--cache-bytes", "0")
            stack.enter_context(running_server(folder / f"{port}.log", *flags, "--port", str(port)))
        yield stack.enter_context(running_balancer("haproxy", folder, ports)).url


@contextlib.contextmanager
def served(path: str) -> Iterator[str]:
    """Run two replicas of one CPU each under Ray Serve; give its proxy's address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    port = free_port()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        config = settings_of({"model_path": path, "num_workers": 1, "n_threads": 1, "cache_bytes": 0})
        serve.run(deployment_of(config).options(num_replicas=2).bind(config), route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def measured(urls: dict[str, str], n_rounds: int, seconds: float) -> dict[str, float]:
    """Load both in turns, and compare them round by round."""
    pool = texts.sentences()
    found: dict[str, float] = {}
    for name, (n_clients, n_texts) in LOADS.items():
        requests = [pool[start : start + n_texts] for start in range(0, len(pool) - n_texts, n_texts)]
        rounds = [
            {way: load.run(url, "minilm", requests, n_clients, seconds) for way, url in urls.items()}
            for _ in range(n_rounds)
        ]
        for way in urls:
            found[f"{name}: {way}, texts/s"] = round(median([each[way].texts_per_s for each in rounds]), 1)
            found[f"{name}: {way}, p50 ms"] = round(median([each[way].p50_ms for each in rounds]), 2)
            found[f"{name}: {way}, p99 ms"] = round(median([each[way].p99_ms for each in rounds]), 2)
            found[f"{name}: {way}, failed"] = sum(each[way].failed for each in rounds)
        ratios = [each["Serve"].texts_per_s / each["HAProxy"].texts_per_s for each in rounds]
        found[f"{name}: Serve to HAProxy"] = round(median(ratios), 3)
    return found


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
