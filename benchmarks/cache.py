"""What the cache gains and what it costs: a server with one beside a server without, in turn.

    .venv/bin/python -m benchmarks.cache            # prints a table
    .venv/bin/python -m benchmarks.cache --save     # and keeps it under benchmarks/results/

repeated   32 clients, one short text each, two in five asked for before: texts a second, with and without the cache. A
           known text costs next to nothing, so the most that can be gained is 1 / 0.6 = 1.67 times
new        the same with none that was asked for before: what keys, keeping and looking up cost
known      every text was asked for before, and workers answer at once (`front.instant`): what a known text costs the
           front's core, beside one that a worker answers
hit        one call of the back end in this process: what a known row itself costs, without HTTP and tokens
layers     the same for a row that is only in the file, or only in Redis, if there is a `redis-server`
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvloop
from embellama_server.workers.worker import HOOK

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from benchmarks.front import cpu_s
from embellama.backend import Backend
from embellama.batch import Rows, Tokens
from embellama.cache.backend import CachedBackend
from embellama.cache.futures import LoopFutures
from embellama.cache.key import RowKeys
from embellama.cache.layers import READ_S, SlowLayer, SlowLayers
from embellama.cache.memory import MemoryLayer
from embellama.cache.redis import RedisLayer
from embellama.cache.sqlite import SqliteLayer
from tests.conftest import Server, running_server
from tests.programs import RedisServer
from tests.server.conftest import InstantBackend

REPEATED_SHARE = 0.4
N_CLIENTS = 32
DIM = 384


class Texts:
    """Short texts without end, none of them twice unless that is asked for."""

    def __init__(self) -> None:
        self._pool = texts.sentences()
        self._n = 0
        self._random = random.Random(0)

    def new(self, n: int) -> list[str]:
        """Return texts that nobody has had yet."""
        self._n += n
        return [f"{self._pool[i % len(self._pool)]} {i}" for i in range(self._n - n, self._n)]

    def repeated(self, n: int) -> list[str]:
        """Return texts of which `REPEATED_SHARE` are among those before them."""
        found: list[str] = []
        for text in self.new(n):
            again = found and self._random.random() < REPEATED_SHARE
            found.append(self._random.choice(found) if again else text)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What the cache gains and what it costs.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--requests", type=int, default=2000, help="requests of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-cache-CPU.json")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "server")])  # workers import `front`
    found = loads(options) | known(options)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found |= runner.run(hits())
    result = {
        "machine": machine(options.model_path),
        "options": {"requests": options.requests, "rounds": options.rounds},
        "medians": found,
    }
    for key, value in found.items():
        print(f"{key:64} {value:10.3f}")
    if options.save:
        path = result_base("cache", result["machine"]["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def two_servers(options: argparse.Namespace) -> Iterator[dict[str, Server]]:
    """Run a server with the default cache and one without."""
    flags = (
        "--model-path",
        options.model_path,
        "--model-name",
        "minilm",
        "--workers",
        "2",
        "--max-batch-tokens",
        "192",
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder) / "with", *flags) as cached,
        running_server(Path(folder) / "without", *flags, "--cache-bytes", "0") as plain,
    ):
        yield {"with": cached, "without": plain}


def loads(options: argparse.Namespace) -> dict[str, float]:
    """Ask both servers for the same texts, in turn; return medians over rounds, of ratios too.

    The CPU time of front and workers is measured too: what else the machine does changes it less than texts a second.
    """
    made = Texts()
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with two_servers(options) as servers:
        for name, make in (("warm", made.new), ("repeated", made.repeated), ("new", made.new)):
            for n in range(1 if name == "warm" else options.rounds):
                requests = [[text] for text in make(options.requests)]
                in_turn = list(servers.items())
                for which, server in in_turn[:: 1 if n % 2 else -1]:
                    family = [server.process, *server.workers()]
                    before = sum(map(cpu_s, family))
                    rate = load.run(server.url, "minilm", requests, N_CLIENTS, None).texts_per_s
                    rates.setdefault(f"{name}, {which}", []).append(rate)
                    cost = 1e6 * (sum(map(cpu_s, family)) - before) / len(requests)
                    costs.setdefault(f"{name}, {which}", []).append(cost)
    found = {f"{name} the cache: texts/s": statistics.median(values) for name, values in rates.items()}
    found |= {f"{name} the cache: CPU µs a text": statistics.median(values) for name, values in costs.items()}
    for name in ("repeated", "new"):
        with_cache, without = costs[f"{name}, with"], costs[f"{name}, without"]
        found[f"{name}: CPU with / without"] = statistics.median(
            a / b for a, b in zip(with_cache, without, strict=True)
        )
        ratios = [a / b for a, b in zip(rates[f"{name}, with"], rates[f"{name}, without"], strict=True)]
        found[f"{name}: with / without"] = statistics.median(ratios)
        found[f"{name}: with / without, least"] = min(ratios)
        found[f"{name}: with / without, most"] = max(ratios)
    return found


def known(options: argparse.Namespace) -> dict[str, float]:
    """See what a request costs the front where workers answer at once, and where all is known."""
    requests = [[text] for text in Texts().new(600)]
    costs: dict[str, list[float]] = {}
    os.environ[HOOK] = "benchmarks.front:instant"
    with two_servers(options) as servers:
        for server in servers.values():
            load.run(server.url, "minilm", requests, N_CLIENTS, None)
        for _ in range(options.rounds):
            for which, server in servers.items():
                before = cpu_s(server.process)
                measured = load.run(server.url, "minilm", requests, N_CLIENTS, 2)
                costs.setdefault(which, []).append(1e6 * (cpu_s(server.process) - before) / measured.requests)
    del os.environ[HOOK]
    return {
        "a known text: front's µs a request": statistics.median(costs["with"]),
        "a text that a worker answers at once: front's µs a request": statistics.median(costs["without"]),
    }


async def hits() -> dict[str, float]:
    """Time a known row by itself: in memory, and in each layer that is there."""
    inside: Backend[asyncio.Future[Rows]] = InstantBackend(DIM)
    text = np.arange(17, dtype=np.int32)
    found = {"no cache: µs a call": await µs_a_call(inside, [text] * 3000)}
    memory = around(inside, [])
    await memory.submit([text])
    found["hit in memory: µs a call"] = await µs_a_call(memory, [text] * 3000)
    new = [np.array([*text, i], np.int32) for i in range(3000)]
    found["miss, and kept: µs a call"] = await µs_a_call(around(inside, []), new)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        layers: dict[str, SlowLayer] = {"the file": SqliteLayer(f"{folder}/rows", 1 << 30)}
        if shutil.which("redis-server"):
            redis = RedisServer(Path(folder))
            stack.callback(redis.kill)
            layers["Redis"] = RedisLayer(redis.url, 0, READ_S)
        for name, layer in layers.items():
            first = around(inside, [layer])
            await µs_a_call(first, new)  # one after another, so that a busy layer need not leave any out
            await asyncio.sleep(1)  # until all is written
            again = around(inside, [layer])
            found[f"hit in {name}: µs a call"] = await µs_a_call(again, new)
            [state] = [state for state in again.state.cache if state.name == layer.name]
            found[f"hit in {name}: share of hits"] = state.n_hits / (state.n_hits + state.n_misses)
            if (closing := again.close()) is not None:
                await closing
    return found


def around(inside: "Backend[asyncio.Future[Rows]]", layers: list[SlowLayer]) -> "CachedBackend[asyncio.Future[Rows]]":
    """Put a cache with an empty memory around a back end."""
    return CachedBackend(
        inside,
        RowKeys(b"benchmark"),
        MemoryLayer(1 << 26),
        SlowLayers(layers) if layers else None,
        LoopFutures(),
        dim=DIM,
        full_batch=192,
    )


async def µs_a_call(backend: "Backend[asyncio.Future[Rows]]", each: list[Tokens]) -> float:
    """Ask for texts one after another; return the median time."""
    took = []
    for text in each:
        start = time.perf_counter()
        await backend.submit([text])
        took.append(time.perf_counter() - start)
    return 1e6 * statistics.median(took)


if __name__ == "__main__":
    main()
