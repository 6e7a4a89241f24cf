"""What the cache promises, put to the test: thousands of mixed requests while Redis and workers are killed.

    .venv/bin/python -m benchmarks.cache_soak                      # 10,000 requests
    .venv/bin/python -m benchmarks.cache_soak --requests 100000

Every answer is compared with those of a server that keeps no rows: vectors, indices, `usage`. All the while a worker is
killed, Redis is killed, silent and started again, and clients leave. Ends with status 1 if an answer was wrong.
"""

import argparse
import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.cache.mixed import Known, Mixed, as_lines
from tests.conftest import Server, running_server
from tests.programs import RedisServer
from tests.tiny import write_bert

FLAGS = ("--workers", "2", "--max-batch-tokens", "192")

# So little memory and so small a file that both evict all the time.
SIZES = ("--cache-bytes", "60000", "--cache-file-bytes", "200000")

# Requests between two disturbances.
EVERY = 250


def main() -> None:
    parser = argparse.ArgumentParser(description="Mixed requests to a cache, while what it rests on is killed.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(write_bert(folder / "tiny.gguf"))
        with running_server(folder / "reference.log", "--model-path", model, *FLAGS, "--cache-bytes", "0") as server:
            known = Known(server.url, 200, 5)
        redis = RedisServer(folder)
        layers = (*SIZES, "--cache-file", name + "/rows", "--redis-url", redis.url)
        try:
            with running_server(folder / "log", "--model-path", model, *FLAGS, *layers) as server:
                mixed = Mixed(server.url, known)
                started = time.monotonic()
                n_disturbances = asyncio.run(disturbed(mixed, options, server, redis))
                took = time.monotonic() - started
                print(f"{options.requests} requests in {took:.0f} s, {n_disturbances} disturbances: {as_lines(mixed)}")
                for layer, counts in httpx.get(f"{server.url}/health").json()["cache"].items():
                    print(layer, counts)
        finally:
            redis.kill()
    for problem in mixed.wrong[:20]:
        print(problem)
    raise SystemExit(bool(mixed.wrong))


async def disturbed(mixed: Mixed, options: argparse.Namespace, server: Server, redis: RedisServer) -> int:
    """Ask while things are killed; return how many times something was done."""
    choose = random.Random(0)
    asking = asyncio.create_task(mixed.ask(options.requests, options.clients))
    disturbances: list[Callable[[], None]] = [
        lambda: choose.choice(server.workers()).kill(),
        redis.stop,
        redis.go_on,
        peace,
        redis.kill,
        redis.start,
        peace,
        peace,
    ]
    for n, disturb in enumerate(itertools.cycle(disturbances)):
        while mixed.seen.total() < EVERY * (n + 1) and not asking.done():  # noqa: ASYNC110 - it tells nobody else
            await asyncio.sleep(0.01)
        if asking.done():
            await asking
            return n
        await asyncio.to_thread(disturb)
    raise AssertionError("a cycle does not end")


def peace() -> None:
    """Leave everything as it is, so that it recovers."""


if __name__ == "__main__":
    main()
