"""A crowd and a flood: how long the server's event loop stalls, and how fast it says no.

    .venv/bin/python -m benchmarks.crowd [--save]

crowd   200 clients, each asking for 1 to 6 texts of 1 to 4 sentences, 30 s on two workers. The server runs in this
        process, where a task that wants to wake every millisecond tells how late it does; so the figure holds the
        operating system's own delays too, on cores that are all busy. Every row is checked against the library's.
flood   100 clients against one worker and a waiting room of 4: what the 503s take, and whether the others succeed.
"""

import argparse
import asyncio
import base64
import datetime
import gc
import json
import multiprocessing
import random
import re
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn
import uvloop
from embellama_server.app import build_app
from embellama_server.application import build
from embellama_server.config import ServerConfig
from numpy.typing import NDArray

from benchmarks import texts
from benchmarks.compare import ROOT, machine
from benchmarks.load import read_answer, request
from embellama import EmbeddingEngine, EngineConfig

Rows = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description="How long the event loop stalls, and how fast the server says no.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-crowd-CPU.json")
    options = parser.parse_args()

    pool = texts.joined(texts.sentences(), [1, 2, 3, 4] * 50)
    with EmbeddingEngine(EngineConfig(model_path=options.model_path, model_name="minilm", cache_bytes=0)) as engine:
        rows = engine.embed_batch("minilm", pool)
    common = {"model_path": options.model_path, "model_name": "minilm", "port": 0, "cache_bytes": 0}
    crowd = ServerConfig(**common, num_workers=2)
    flood = ServerConfig(**common, num_workers=1, queue_size=4)
    result = {
        "machine": machine(options.model_path),
        "crowd, 200 clients": serve_and_load(crowd, (pool, rows, 200, 6, options.seconds)),
        "flood, 100 clients, queue of 4": serve_and_load(flood, (pool, rows, 100, 16, options.seconds / 3)),
    }
    print(json.dumps(result, indent=1))
    if options.save:
        cpu = re.sub(r"[^a-z0-9]+", "-", machine(options.model_path)["cpu"].lower()).strip("-")
        path = Path(__file__).parent / "results" / f"{datetime.date.today()}-crowd-{cpu}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


def serve_and_load(config: ServerConfig, load: tuple[Any, ...]) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve_and_load(config.checked(), load))


async def _serve_and_load(config: ServerConfig, load: tuple[Any, ...]) -> dict[str, Any]:
    """Run the server in this process, the load in another, and watch the event loop meanwhile."""
    state = build(config)
    dispatcher = state.model(None).dispatcher
    dispatcher.start()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        http = uvicorn.Server(
            uvicorn.Config(
                build_app(state), http="httptools", ws="none", lifespan="off", log_config=None, access_log=False
            )
        )
        serving = asyncio.ensure_future(http._serve(sockets=[listener]))
        while dispatcher.state.status != "ok":  # noqa: ASYNC110 - the pool tells no one else
            await asyncio.sleep(0.05)
        gc.collect()
        gc.freeze()
        late: list[float] = []
        watch = asyncio.ensure_future(_watch(late))
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as process:
            url = listener.getsockname()
            result: dict[str, Any] = await asyncio.to_thread(process.apply, ask_all, (url, *load))
        watch.cancel()
        http.should_exit = True
        await serving
    await dispatcher.close()
    p50, p99, worst = np.percentile(late, [50, 99, 100]) * 1000
    return {**result, "loop_late_ms": {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(worst, 2)}}


async def _watch(late: list[float]) -> None:
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - start - 0.001)


def ask_all(
    address: tuple[str, int], pool: list[str], rows: Rows, n_clients: int, most: int, seconds: float
) -> dict[str, Any]:
    """Ask from `n_clients` at once for `seconds`, check each row, and tell what came back."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_ask_all(address, pool, rows, n_clients, most, seconds))


async def _ask_all(
    address: tuple[str, int], pool: list[str], rows: Rows, n_clients: int, most: int, seconds: float
) -> dict[str, Any]:
    choose = random.Random(0)
    latencies: dict[int, list[float]] = {}
    worst_cosine = 1.0
    n_rows = without_retry_after = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal worst_cosine, n_rows, without_retry_after
        reader, writer = await asyncio.open_connection(*address)
        while time.perf_counter() < end:
            picked = [choose.randrange(len(pool)) for _ in range(choose.randint(1, most))]
            writer.write(request(f"{address[0]}:{address[1]}", "minilm", [pool[i] for i in picked]))
            start = time.perf_counter()
            status, head, body = await read_answer(reader)
            latencies.setdefault(status, []).append(time.perf_counter() - start)
            if status == 200:
                data = orjson.loads(body)["data"]
                assert len(data) == len(picked)
                got = np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in data])
                worst_cosine = min(worst_cosine, float(np.sum(got * rows[picked], axis=1).min()))
                n_rows += len(picked)
            else:
                without_retry_after += status == 503 and b"retry-after:" not in head
                await asyncio.sleep(0.05)  # a refused client that asked again at once would measure itself
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(n_clients)))
    answers = {}
    for status, times in sorted(latencies.items()):
        p50, p99 = np.percentile(times, [50, 99]) * 1000
        answers[str(status)] = {"answers": len(times), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}
    checked = {"rows": n_rows, "worst_cosine": round(worst_cosine, 6), "503_without_retry_after": without_retry_after}
    return {"statuses": answers, **checked}


if __name__ == "__main__":
    main()
