"""What Ray Data costs: two actors of one CPU each beside `embed_batch` on the same two, in turns.

    .venv/bin/python -m benchmarks.ray_data --save     # and keeps it under benchmarks/results/

The cluster has two nodes of one CPU on this machine; what Ray runs beside them takes of the same cores. A job starts
its actors and their models anew, so there are two figures: the whole job's, and that from the first batch's beginning
to the last one's end, which is what long jobs come to.
"""

import argparse
import json
import logging
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.cluster_utils import Cluster

from benchmarks.bulk import sentences
from benchmarks.compare import ROOT, machine, result_base, write
from embellama import EmbeddingEngine, EngineConfig
from embellama.ray import EmbedTexts

# Nodes of the tests' size.
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False}


class TimedEmbedTexts(EmbedTexts):
    """Tells of each batch when it was begun and ended, in seconds of the machine's clock."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.monotonic()
        made = super().__call__(batch).drop_columns(["text"])
        times = [pa.array([value] * len(made)) for value in (began, time.monotonic())]
        return made.append_column("began", times[0]).append_column("ended", times[1])


class Job(NamedTuple):
    """A job's seconds: all of them, and those in which it computed."""

    whole_s: float
    computing_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description="What Ray Data costs.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000, help="texts of a measure (default: %(default)s)")
    parser.add_argument("--batch-rows", type=int, default=1024, help="texts of a batch (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-ray-data-CPU.json")
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        found = measured(options)
    finally:
        ray.shutdown()
        cluster.shutdown()
    for name, value in found.items():
        print(f"{name:50} {value:10.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "ray": ray.__version__, "rows": options.rows, "found": found}
        path = result_base("ray-data", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Measure both in turns, and compare them round by round."""
    path = str(Path(options.model_path).resolve())
    batch = list(sentences(options.rows, options.rows))
    engine_s, jobs = [], []
    with EmbeddingEngine(EngineConfig(model_path=path, num_workers=2, cache_bytes=0)) as engine:
        engine.embed_batch(None, batch[:1000])
        for _ in range(options.rounds):
            started = time.perf_counter()
            engine.embed_batch(None, batch)
            engine_s.append(time.perf_counter() - started)
            jobs.append(job(path, batch, options.batch_rows))
    pairs = list(zip(engine_s, jobs, strict=True))
    computing = [seconds / each.computing_s for seconds, each in pairs]
    return {
        "embed_batch, texts/s": round(options.rows / statistics.median(engine_s), 1),
        "two actors, texts/s": round(options.rows / statistics.median(each.computing_s for each in jobs), 1),
        "two actors to embed_batch": round(statistics.median(computing), 3),
        "two actors to embed_batch, least": round(min(computing), 3),
        "two actors to embed_batch, most": round(max(computing), 3),
        "whole job to embed_batch": round(statistics.median(seconds / each.whole_s for seconds, each in pairs), 3),
        "seconds to start": round(statistics.median(each.whole_s - each.computing_s for each in jobs), 2),
    }


def job(path: str, batch: list[str], batch_rows: int) -> Job:
    """Run a job whose texts are in the object store already."""
    blocks = [pa.table({"text": batch[start : start + batch_rows]}) for start in range(0, len(batch), batch_rows)]
    texts = ray.data.from_arrow(blocks)
    started = time.monotonic()
    made = texts.map_batches(
        TimedEmbedTexts,
        fn_constructor_kwargs={"model_path": path, "cache_bytes": 0},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_format="pyarrow",
        batch_size=batch_rows,
    )
    tables = ray.get(made.to_arrow_refs())
    whole_s = time.monotonic() - started
    times = pa.concat_tables(tables).select(["began", "ended", "error_code"])
    assert len(times) == len(batch) == times["error_code"].null_count
    return Job(whole_s, max(times["ended"].to_pylist()) - min(times["began"].to_pylist()))


if __name__ == "__main__":
    main()
