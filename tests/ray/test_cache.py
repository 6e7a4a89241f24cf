"""One cache: servers and a Ray job that share a Redis have each other's rows."""

import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import ray
import ray.data
import redis
from ray.cluster_utils import Cluster

from tests.conftest import Server, running_server, wait_until
from tests.programs import RedisServer
from tests.ray.conftest import FIXED, spelled
from tests.ray.patient import SERVER, PatientEmbedTexts


def ask(server: Server, texts: Sequence[str]) -> list[list[float]]:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": texts}, timeout=60)
    return [item["embedding"] for item in answer.json()["data"]]


def hits(server: Server) -> int:
    return int(httpx.get(f"{server.url}/health").json()["cache"]["redis"]["hits"])


def test_a_text_that_one_computed_is_a_hit_for_the_others(
    cluster: Cluster, redis_server: RedisServer, tiny_path: str, tmp_path: Path
) -> None:
    first, second, third = ([spelled(1000 * part + i) for i in range(50)] for part in (1, 2, 3))
    flags = ("--model-path", tiny_path, "--workers", "1", "--compute", "llama", "--redis-url", redis_server.url)
    under = (sys.executable, "-c", SERVER)
    with (
        redis.Redis.from_url(redis_server.url) as store,
        running_server(tmp_path / "a.log", *flags, under=under) as a,
        running_server(tmp_path / "b.log", *flags, under=under) as b,
    ):
        from_a, from_b = ask(a, first), ask(b, second)
        wait_until(lambda: store.dbsize() == 100, "both have written what they computed")
        before = store.info("stats")["keyspace_hits"]
        table = pa.table({"text": [*first, *second, *third]})
        made = ray.data.from_arrow(table).map_batches(
            PatientEmbedTexts,
            fn_constructor_kwargs={"model_path": tiny_path, "redis_url": redis_server.url, **FIXED},
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_format="pyarrow",
        )
        rows = np.stack(pa.concat_tables(ray.get(made.to_arrow_refs()))["embedding"].to_numpy())
        assert store.info("stats")["keyspace_hits"] - before == 100
        np.testing.assert_array_equal(rows[:100], np.array([*from_a, *from_b], np.float32))
        wait_until(lambda: store.dbsize() == 150, "the job has written what it computed")
        assert (hits(a), hits(b)) == (0, 0)
        np.testing.assert_array_equal(np.array(ask(a, [*second, *third]), np.float32), rows[50:])
        assert (hits(a), hits(b)) == (100, 0)
