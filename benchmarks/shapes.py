"""Why a pool: the same requests on a pool of processes, on one shared model, and on a model for each request.

    .venv/bin/python -m benchmarks.shapes

32 clients ask for one short text each; the memory is what all processes together take (PSS: shared pages count once).
"""

import statistics
import time

import psutil

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, our_server
from embellama import EmbeddingModel, EngineConfig


def main() -> None:
    model_path = str(ROOT / "models" / "minilm.gguf")
    short = texts.sentences()[:600]
    requests = [[text] for text in short]
    rows: list[tuple[str, float, float, float]] = []
    for name, flags in (
        ("pool: 2 processes, 1 thread each", ("--workers", "2")),
        ("shared: 1 process, 2 threads, batches", ("--workers", "1")),
        ("shared: 1 process, 2 threads, one text at a time", ("--workers", "1", "--max-batch-size", "1")),
    ):
        with our_server(model_path, *flags) as (url, process):
            loads = [load.run(url, "minilm", requests, 32, 4) for _ in range(3)]
            family = [process, *process.children(recursive=True)]
            pss = sum(member.memory_full_info().pss for member in family)
        rows.append(
            (
                name,
                statistics.median(one.texts_per_s for one in loads),
                statistics.median(one.p50_ms for one in loads),
                pss / 1e6,
            )
        )
    config = EngineConfig(model_path=model_path)
    times = []
    for text in short[:20]:
        start = time.perf_counter()
        with EmbeddingModel(config) as model:
            model.embed(text)
        times.append(time.perf_counter() - start)
    rss = psutil.Process().memory_info().rss / 1e6
    one = statistics.median(times)
    rows.append(("model per request (1 client)", 1 / one, one * 1000, rss))
    print(machine(model_path)["cpu"])
    print("| shape | texts/s | p50 ms | memory MB |\n|---|---|---|---|")
    for name, rate, p50, memory in rows:
        print(f"| {name} | {rate:.0f} | {p50:.0f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
