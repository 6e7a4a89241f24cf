"""What this machine takes: the `Costs` of a simulation, and the servers that it is compared with.

measured_costs ──► Costs: batches of one thread; one and two of them at once; front, balancer and clients beside a
                   worker that sleeps where it would compute
pools ──► real servers of one worker each, and HAProxy as deploy/ configures it before so many of them
"""

import contextlib
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from embellama_server.workers.worker import HOOK

from benchmarks import load, texts
from benchmarks.compare import ROOT
from benchmarks.front import cpu_s, instant
from benchmarks.simulation.costs import Costs
from embellama.batch import Batch, Rows
from embellama.config import EngineConfig
from embellama.model import EmbeddingModel
from tests.conftest import Server, running_server
from tests.programs import free_port, listens, program, running

MAX_BATCH_TOKENS = 192

# Sentences in the batches that are timed; the last is full, or a little more.
BATCH_SENTENCES = (1, 2, 4, 8, 12, 16)

# A worker that sleeps answers after so many seconds for each token, about as one that computes.
SLEEP_S = 100e-6

CONFIG_NAME = "minilm"

# So many ratios stand for those of all batches to what is expected of them.
SPREAD = 39

# Texts of a long request.
LONG = 32

# Loads whose wakes differ by less tell nothing of what one costs.
MIN_APART = 0.2


def paced(model: EmbeddingModel) -> None:
    """Have a worker sleep instead of computing (a worker's hook), so that it takes nobody's core."""
    instant(model)
    answer = model.encode

    def encode(batch: Batch, n_threads: int | None = None) -> Rows:
        time.sleep(SLEEP_S * len(batch.tokens))
        return answer(batch, n_threads)

    model.encode = encode  # type: ignore[method-assign]


@contextlib.contextmanager
def sleepers() -> Iterator[None]:
    """Have the workers of servers that are started meanwhile sleep instead of computing."""
    os.environ[HOOK] = f"{__name__}:paced"
    try:
        yield
    finally:
        del os.environ[HOOK]


def token_counts(model_path: str) -> list[int]:
    """Return the tokens of each of `texts.sentences`."""
    with EmbeddingModel(_config(model_path)) as model:
        return [len(ids) for ids in model.tokenizer.encode(texts.sentences()).tokens]


def measured_costs(model_path: str, seconds: float) -> Costs:
    """Measure what things cost here, each load for so many seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, pools(Path(folder), model_path, (1,)):
        ready_s = time.perf_counter() - start
    n_cores = os.cpu_count() or 1
    # Beside others, a core computes the same in more time. Between one busy core and all of them, in proportion.
    together = _full_batch_s(model_path, 1, seconds) / _full_batch_s(model_path, n_cores, seconds)
    speeds = tuple(1 + (n_cores * together - 1) * i / max(n_cores - 1, 1) for i in range(n_cores))
    return Costs(
        **_batches(model_path, seconds),
        speeds=speeds,
        ready_s=round(ready_s, 2),
        **_beside_sleepers(model_path, seconds),
    )


def _config(model_path: str) -> EngineConfig:
    config = EngineConfig(
        model_path=model_path, num_workers=1, n_threads=1, max_batch_tokens=2 * MAX_BATCH_TOKENS, cache_bytes=0
    )
    return config.checked()


def _batches(model_path: str, seconds: float) -> dict[str, Any]:
    """Time batches of one thread: of each number of sentences tokens and the median of seconds, and how they spread."""
    pool = texts.sentences()
    points, timed = list[tuple[int, float]](), list[tuple[int, float]]()
    with EmbeddingModel(_config(model_path)) as model:
        tokens = model.tokenizer.encode(pool).tokens
        for n in BATCH_SENTENCES:
            found: list[tuple[int, float]] = []
            end, at = time.perf_counter() + seconds / len(BATCH_SENTENCES), 0
            while time.perf_counter() < end or len(found) < 10:
                batch = Batch.join([tokens[(at + i) % len(tokens)] for i in range(n)])
                at += n
                start = time.thread_time()  # what other programs take of the core does not count
                model.encode(batch, 1)
                found.append((len(batch.tokens), time.thread_time() - start))
            points.append((round(statistics.mean(n for n, _ in found)), statistics.median(took for _, took in found)))
            timed += found
    fitted = Costs(batches=tuple(points))
    ratios = [took / fitted.batch_s(n_tokens) for n_tokens, took in timed]
    return {"batches": tuple(points), "spread": tuple(statistics.quantiles(ratios, n=SPREAD + 1))}


def _full_batch_s(model_path: str, n_threads: int, seconds: float) -> float:
    """Compute full batches in so many threads at once, each with a model; return the seconds of a core for one."""
    took: list[float] = []
    barrier = threading.Barrier(n_threads)

    def compute() -> None:
        with EmbeddingModel(_config(model_path)) as model:
            batch = Batch.join(model.tokenizer.encode(texts.sentences()[:12]).tokens)
            model.encode(batch, 1)
            barrier.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.thread_time()
                model.encode(batch, 1)
                took.append(time.thread_time() - start)

    threads = [threading.Thread(target=compute) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(took)


class _Seen(NamedTuple):
    """What a process did for one request, on average.

    cpu_s: Seconds of a core.
    wakes: Times that it had nothing to do before.
    """

    cpu_s: float
    wakes: float


def _beside_sleepers(model_path: str, seconds: float) -> dict[str, Any]:
    """Measure what requests cost front, balancer, clients and worker."""
    pool = texts.sentences()
    short, long = [[text] for text in pool], [pool[i : i + LONG] for i in range(0, 3 * LONG, LONG)]
    with (
        sleepers(),
        tempfile.TemporaryDirectory() as folder,
        pools(Path(folder), model_path, (1,)) as (fronts, servers),
    ):
        family = (servers[0].process, fronts[0].process, psutil.Process(), *servers[0].workers())
        loads = ((short, 1), (short, 32), (long, 8))
        lone, many, large = (_seen(fronts[0].url, family, *each, seconds) for each in loads)
    costs: dict[str, float] = {}
    for at, name in enumerate(("front", "balancer", "client")):
        # Of two loads: the same work for a request, and more or less often to wake up for it.
        apart = lone[at].wakes - many[at].wakes
        wake_s = max(lone[at].cpu_s - many[at].cpu_s, 0.0) / apart if apart > MIN_APART else 0.0
        costs[f"{name}_wake_s"] = wake_s
        costs[f"{name}_s"] = max(many[at].cpu_s - wake_s * many[at].wakes, 0.0)
    of_large = large[0].cpu_s - costs["front_wake_s"] * large[0].wakes
    costs["front_text_s"] = text_s = max(of_large - costs["front_s"], 0.0) / (LONG - 1)
    costs["front_request_s"] = max(costs.pop("front_s") - text_s, 0.0)
    # A batch of short texts holds as many of them as fit.
    costs["worker_batch_s"] = large[3].cpu_s / LONG * MAX_BATCH_TOKENS / statistics.mean(token_counts(model_path))
    return costs


def _seen(
    url: str, family: Sequence[psutil.Process], requests: Sequence[Sequence[str]], n_clients: int, seconds: float
) -> list[_Seen]:
    """Load a server, and see what each process of a family did for a request."""
    load.run(url, CONFIG_NAME, requests, n_clients, 0.5)
    before = [(cpu_s(each), each.num_ctx_switches().voluntary) for each in family]
    n = load.run(url, CONFIG_NAME, requests, n_clients, seconds).requests
    after = [(cpu_s(each), each.num_ctx_switches().voluntary) for each in family]
    return [_Seen((a[0] - b[0]) / n, (a[1] - b[1]) / n) for a, b in zip(after, before, strict=True)]


@contextlib.contextmanager
def pools(folder: Path, model_path: str, counts: Sequence[int]) -> Iterator[tuple[list[Server], list[Server]]]:
    """Run as many servers as the largest count, and for each count a balancer before so many of them."""
    flags: tuple[str, ...] = (
        "--model-path",
        model_path,
        "--model-name",
        CONFIG_NAME,
        "--workers",
        "1",
        "--n-threads",
        "1",
    )
    flags += ("--max-batch-tokens", str(MAX_BATCH_TOKENS), "--cache-bytes", "0")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running_server(folder / f"{i}.log", *flags)) for i in range(max(counts))]
        yield [stack.enter_context(_balancer(folder / f"{n}", servers[:n])) for n in counts], servers


@contextlib.contextmanager
def _balancer(base: Path, servers: Sequence[Server]) -> Iterator[Server]:
    """Run HAProxy before servers, as deploy/ configures it but for its addresses, and without TLS."""
    port = free_port()
    text = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    text = re.sub(r"^    server .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^    bind :8443.*\n", "", text, flags=re.MULTILINE).replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = text.rstrip() + "\n"
    for i, server in enumerate(servers):
        text += f"    server s{i} {server.url.removeprefix('http://')}\n"
    path = base.with_suffix(".cfg")
    path.write_text(text)
    with running(base.with_suffix(".haproxy"), program("haproxy"), "-f", path, ready=lambda: listens(port)) as process:
        balancer = Server(process, path)
        balancer.url = f"http://127.0.0.1:{port}"
        yield balancer
