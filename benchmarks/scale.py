"""Predict what many machines do, and compare the prediction with what can be measured on this one.

    .venv/bin/python -m benchmarks.scale                      # predicts 1 to 256 machines, from the costs saved last
    .venv/bin/python -m benchmarks.scale --measure            # measures costs here, and 1, 2 and 4 servers
    .venv/bin/python -m benchmarks.scale --measure --save     # and keeps all under benchmarks/results/

measure    32 clients with a short text each, HAProxy, and 1, 2 or 4 servers of one worker and one thread, all on this
           machine: texts a second and the 99th percentile, beside those of the simulation (`benchmarks/simulation`).
           Once more with workers that sleep for about as long as they would compute: then servers share no cores, as
           on machines of their own. Of the rounds those count in which other programs took next to nothing, or least
redis      what rows in Redis take: bytes, and microseconds of its core
plan       servers of two workers on 1 to 256 machines of their own, with requests of 16 texts, so many that workers
           compute for 0.7 of the time: all alike; with a day's swing; with a tenth of them half as fast; with each gone
           now and then; the balancer sends to the one with the fewest open requests, or to one after another (in turns)

Nothing else should run on the machine; `others` says how much of a core it took.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import redis

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from benchmarks.front import cpu_s
from benchmarks.simulation.cluster import Plan, Prediction, simulate, simulate_here
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.loads import Draw
from benchmarks.simulation.measured import (
    CONFIG_NAME,
    MAX_BATCH_TOKENS,
    SLEEP_S,
    measured_costs,
    pools,
    sleepers,
    token_counts,
)
from benchmarks.simulation.node import Shape
from embellama.cache.entry import sealed
from embellama.cache.redis import PREFIX
from tests.conftest import Server
from tests.programs import RedisServer

POOLS = (1, 2, 4)

# So much of a core other programs may take of a round that counts.
QUIET = 0.05
N_CLIENTS = 32
NODES = (1, 4, 16, 64, 256)
TEXTS_A_REQUEST = 16
N_WORKERS = 2

# Share of the time in which workers compute, and by how much of it a day's load swings: 0.91 at its height.
USE = 0.7
SWING = 0.3

# Each machine goes once in so many seconds, on average. It is away for some ten, so about one in forty is.
FAILS_S = 400.0
SHAPE = Shape(max_batch_tokens=MAX_BATCH_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict what many machines do, and measure what can be here.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--measure", action="store_true", help="measure costs, and compare with 1, 2 and 4 servers")
    parser.add_argument("--seconds", type=float, default=10, help="length of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=256, help="most machines of a plan (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-scale-CPU.json")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "server")])  # workers import a hook
    counts = token_counts(options.model_path)
    result: dict[str, Any] = {"machine": machine(options.model_path)}
    if options.measure:
        costs = measured_costs(options.model_path, options.seconds)
        result |= {"costs": msgspec.to_builtins(costs), "compared": compared(options, costs, counts)}
        with sleepers():
            result["compared"] |= compared(options, costs.with_sleepers(SLEEP_S), counts)
        result["redis"] = redis_costs()
        for name, value in result["redis"].items():
            print(f"redis: {name:24} {value:9.2f}")
    else:
        costs = saved_costs()
    result["plans"] = plans(costs, one_of(counts, TEXTS_A_REQUEST), [n for n in NODES if n <= options.nodes])
    if options.save:
        path = result_base("scale", result["machine"]["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def saved_costs() -> Costs:
    """Return the costs that were measured last."""
    found = sorted((ROOT / "benchmarks" / "results").glob("*-scale-*.json"))
    if not found:
        raise SystemExit("no costs were saved yet: --measure --save does so")
    return msgspec.convert(json.loads(found[-1].read_text())["costs"], Costs)


def one_of(counts: Sequence[int], n_texts: int) -> Draw:
    """Return what draws the tokens of texts out of those of real ones."""
    return lambda chance: chance.choices(counts, k=n_texts)


def compared(options: argparse.Namespace, costs: Costs, counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Measure and simulate 1, 2 and 4 servers here, in turns."""
    rounds: dict[int, list[dict[str, float]]] = {n: [] for n in POOLS}
    with tempfile.TemporaryDirectory() as folder, pools(Path(folder), options.model_path, POOLS) as (fronts, servers):
        for n_round in range(options.rounds):
            for n, balancer in list(zip(POOLS, fronts, strict=True))[:: 1 if n_round % 2 else -1]:
                rounds[n].append(measured(balancer, servers[:n], options.seconds))
    found: dict[str, dict[str, float]] = {}
    for n in POOLS:
        least = min(each["others"] for each in rounds[n])
        quiet = [each for each in rounds[n] if each["others"] <= max(least, QUIET)]
        seen_here = {name: statistics.median(each[name] for each in quiet) for name in quiet[0]}
        told = told_of(simulate_here(n, N_CLIENTS, 30, SHAPE, costs, one_of(counts, 1)))
        kind = f"{n} servers, {'sleeping' if costs.sleeping else 'computing'}"
        row = found[kind] = {"rounds": len(quiet), "others": seen_here.pop("others")}
        print(f"{kind}: {len(quiet)} rounds, in which others took {row['others']:.2f} of a core")
        for name, value in seen_here.items():
            if name == "worker use" and costs.sleeping:
                continue
            row |= {name: value, f"{name}, predicted": told[name], f"{name}, error": told[name] / value - 1}
            print(f"{kind}: {name:12} {value:9.2f}, predicted {told[name]:9.2f}: {told[name] / value - 1:+.3f}")
    return found


def measured(balancer: Server, servers: Sequence[Server], seconds: float) -> dict[str, float]:
    """Load servers through their balancer."""
    requests = [[text] for text in texts.sentences()]
    load.run(balancer.url, CONFIG_NAME, requests, N_CLIENTS, 0.5)
    workers = [worker for server in servers for worker in server.workers()]
    family = [*workers, psutil.Process(), balancer.process, *(server.process for server in servers)]
    before, busy, start = list(map(cpu_s, family)), busy_s(), time.perf_counter()
    seen = load.run(balancer.url, CONFIG_NAME, requests, N_CLIENTS, seconds)
    took = time.perf_counter() - start
    spent = [cpu_s(process) - earlier for process, earlier in zip(family, before, strict=True)]
    assert not seen.failed
    return {
        "texts/s": seen.texts_per_s,
        "p50 ms": seen.p50_ms,
        "p99 ms": seen.p99_ms,
        "worker use": sum(spent[: len(workers)]) / took / len(workers),
        "others": max(busy_s() - busy - sum(spent), 0.0) / took,
    }


def busy_s() -> float:
    """Return the seconds for which this machine's cores have been busy."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def redis_costs(n: int = 20_000) -> dict[str, float]:
    """Measure what rows of 384 numbers take in Redis, kept and read as the cache does it."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            client = redis.Redis(port=server.port)
            entry = sealed(bytes(4 * 384), time.time())
            keys = [PREFIX + number.to_bytes(32, "little") for number in range(n)]
            groups = [keys[start : start + 256] for start in range(0, n, 256)]

            def spent_us(work: Callable[[], object], rows: int) -> float:
                before = client.info("cpu")
                work()
                after = client.info("cpu")
                spent_s = sum(float(after[name]) - float(before[name]) for name in ("used_cpu_sys", "used_cpu_user"))
                return spent_s / rows * 1e6

            def put() -> None:
                for group in groups:
                    with client.pipeline(transaction=False) as pipeline:
                        for key in group:
                            pipeline.set(key, entry, ex=3600)
                        pipeline.execute()

            empty = client.info("memory")["used_memory"]
            return {
                "µs to write a row": spent_us(put, n),
                "bytes a row": (client.info("memory")["used_memory"] - empty) / n,
                "µs to read one of 256": spent_us(lambda: [client.mget(group) for group in groups], n),
                "µs to read one alone": spent_us(lambda: [client.mget([key]) for key in keys[:5000]], 5000),
            }
        finally:
            server.kill()


def told_of(seen: Prediction) -> dict[str, float]:
    """Name the numbers of a prediction as those that are measured."""
    return {
        "texts/s": seen.texts_per_s,
        "p50 ms": seen.p50_ms,
        "p99 ms": seen.p99_ms,
        "worker use": seen.worker_use,
    }


def plans(costs: Costs, draw: Draw, nodes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Simulate machines under four kinds of conditions, two of them under both policies."""
    chance = random.Random(0)
    mean = statistics.mean(sum(draw(chance)) for _ in range(1000))
    request_s = costs.batch_s(MAX_BATCH_TOKENS) / MAX_BATCH_TOKENS * mean  # of a worker's core
    found: dict[str, dict[str, float]] = {}
    for n in nodes:
        seconds = min(30.0, 800 / n)
        base = Plan(
            n_nodes=n,
            n_cores=N_WORKERS + 1,
            shape=msgspec.structs.replace(SHAPE, n_workers=N_WORKERS),
            rate=USE * N_WORKERS * n / request_s,
            seconds=seconds,
        )
        for name, changed in conditions(seconds).items():
            seen = simulate(msgspec.structs.replace(base, **changed), costs, draw)
            found[f"{n}, {name}"] = msgspec.to_builtins(seen)
            print(
                f"{n:4} {name:18} {seen.texts_per_s:9.0f} texts/s, p50 {seen.p50_ms:.1f} ms, p99 {seen.p99_ms:.1f} ms, "
                f"workers {seen.worker_use:.2f}, fronts {seen.front_use:.3f}, full {seen.n_full}, lost {seen.n_lost}",
                flush=True,
            )
    return found


def conditions(seconds: float) -> dict[str, dict[str, Any]]:
    """Name what is changed in a plan of so many seconds."""
    return {
        "alike": {},
        "alike, in turns": {"policy": "roundrobin"},
        "diurnal": {"swing": SWING, "day_s": seconds},
        "slow": {"slow_share": 0.1},
        "slow, in turns": {"slow_share": 0.1, "policy": "roundrobin"},
        "failures": {"failures_a_day": 1.0, "day_s": FAILS_S},
    }


if __name__ == "__main__":
    main()
