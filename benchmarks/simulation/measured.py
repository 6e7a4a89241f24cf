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


def paced(model: EmbeddingModel) -> None:
    """Have a worker sleep instead of computing (a worker's hook), so that it takes nobody's core."""
    instant(model)
    answer = model.encode

    def encode(batch: Batch, n_threads: int | None = None) -> Rows:
        time.sleep(SLEEP_S * len(batch.tokens))
        return answer(batch, n_threads)

    model.encode = encode  # type: ignore[method-assign]


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
        batches=_batches(model_path, seconds),
        speeds=speeds,
        ready_s=round(ready_s, 2),
        **_beside_sleepers(model_path, seconds),
    )


def _config(model_path: str) -> EngineConfig:
    config = EngineConfig(
        model_path=model_path, num_workers=1, n_threads=1, max_batch_tokens=2 * MAX_BATCH_TOKENS, cache_bytes=0
    )
    return config.checked()


def _batches(model_path: str, seconds: float) -> tuple[tuple[int, float], ...]:
    """Time batches of one thread: tokens, and the median of seconds."""
    pool = texts.sentences()
    found = []
    with EmbeddingModel(_config(model_path)) as model:
        tokens = model.tokenizer.encode(pool).tokens
        for n in BATCH_SENTENCES:
            took, counts = list[float](), list[int]()
            end, at = time.perf_counter() + seconds / len(BATCH_SENTENCES), 0
            while time.perf_counter() < end or len(took) < 10:
                batch = Batch.join([tokens[(at + i) % len(tokens)] for i in range(n)])
                at += n
                start = time.thread_time()  # what other programs take of the core does not count
                model.encode(batch, 1)
                took.append(time.thread_time() - start)
                counts.append(len(batch.tokens))
            found.append((round(statistics.mean(counts)), statistics.median(took)))
    return tuple(found)


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


def _beside_sleepers(model_path: str, seconds: float) -> dict[str, float]:
    """Measure what requests cost front, worker, balancer and clients."""
    os.environ[HOOK] = f"{__name__}:paced"
    pool = texts.sentences()
    found = []
    try:
        with tempfile.TemporaryDirectory() as folder, pools(Path(folder), model_path, (1,)) as ((balancer,), [server]):
            for requests, n_clients in (([[text] for text in pool], 32), ([pool[i : i + 32] for i in (0, 32, 64)], 8)):
                load.run(balancer.url, CONFIG_NAME, requests, n_clients, 0.5)
                family = (server.process, balancer.process, *server.workers())
                before, own = [cpu_s(process) for process in family], time.process_time()
                n = load.run(balancer.url, CONFIG_NAME, requests, n_clients, seconds).requests
                spent = [cpu_s(process) - earlier for process, earlier in zip(family, before, strict=True)]
                found.append([each / n for each in (*spent, time.process_time() - own)])
    finally:
        del os.environ[HOOK]
    short, long = found
    text_s = max(long[0] - short[0], 0) / 31
    # A batch of short texts holds as many of them as fit.
    n_batched = MAX_BATCH_TOKENS / statistics.mean(token_counts(model_path))
    return {
        "front_text_s": text_s,
        "front_request_s": short[0] - text_s,
        "balancer_s": short[1],
        "worker_batch_s": short[2] * n_batched,
        "client_s": short[3],
    }


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
