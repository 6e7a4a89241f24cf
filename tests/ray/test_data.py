"""Ray Data: `EmbedTexts` in actors, whatever becomes of them."""

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from numpy.typing import NDArray
from ray.cluster_utils import Cluster

from embellama import EmbeddingEngine, EngineConfig
from embellama.errors import EmbellamaError
from embellama.ray import EmbedTexts
from tests.conftest import ROOT, wait_until
from tests.ray.conftest import FIXED, STORE_BYTES, node, spelled
from tests.ray.slow import SlowEmbedTexts

# On one CPU each.
TWO = ray.data.ActorPoolStrategy(size=2)

# So many rows with so many bytes beside each text take more than all nodes' object stores hold.
N_ROWS, ROW_BYTES = 4_000, 100_000


def embedded(texts: Any, **settings: Any) -> pa.Table:
    """Embed texts, in blocks of 100, and return the rows by their number."""
    numbered = pa.table({"number": range(len(texts)), "text": texts})
    blocks = [numbered.slice(start, 100) for start in range(0, len(texts), 100)]
    made = ray.data.from_arrow(blocks).map_batches(
        EmbedTexts, fn_constructor_kwargs=settings, compute=TWO, batch_format="pyarrow"
    )
    return pa.concat_tables(ray.get(made.to_arrow_refs())).sort_by("number")


def vectors(table: pa.Table) -> NDArray[np.float32]:
    return np.stack(table["embedding"].to_numpy())


def expected(model_path: str, texts: list[str], **settings: Any) -> NDArray[np.float32]:
    with EmbeddingEngine(EngineConfig(model_path=model_path, **settings)) as engine:
        return engine.embed_batch(None, texts)


@pytest.mark.model
def test_vectors_are_those_of_the_engine_and_rows_keep_their_columns(cluster: Cluster, model_path: str) -> None:
    texts = [f"The train to platform {i} leaves at nine." for i in range(400)]
    table = embedded(texts, model_path=model_path, **FIXED)
    assert table["text"].to_pylist() == texts
    assert table["error_code"].null_count == len(texts)
    assert min(table["n_tokens"].to_pylist()) >= 9
    np.testing.assert_allclose(vectors(table), expected(model_path, texts), atol=2e-3)


def test_a_text_that_fails_does_so_by_itself(cluster: Cluster, tiny_path: str) -> None:
    texts = ["red", None, "", "poison", "green " * 9999, "blue"]
    table = embedded(texts, model_path=tiny_path, dimensions=4, **FIXED)
    assert table["error_code"].to_pylist() == [
        None,
        "no_text",
        "invalid_request_error",
        "model_error",
        "context_length_exceeded",
        None,
    ]
    assert [vector is None for vector in table["embedding"].to_pylist()] == [False, True, True, True, True, False]
    np.testing.assert_allclose(
        np.stack([table["embedding"][i].as_py() for i in (0, 5)]),
        EmbeddingEngine(EngineConfig(model_path=tiny_path)).embed_batch(None, ["red", "blue"], dimensions=4),
        atol=1e-5,
    )


def test_an_actor_and_a_node_are_killed_and_every_row_comes_once(
    cluster: Cluster, tiny_path: str, tmp_path: Path
) -> None:
    doomed = cluster.add_node(**node(1))
    n = 1000

    def with_text(batch: pa.Table) -> pa.Table:
        return batch.append_column("text", pa.array([spelled(i) for i in batch["id"].to_pylist()]))

    made = (
        ray.data.range(n, override_num_blocks=40)
        .map_batches(with_text, batch_format="pyarrow")
        .map_batches(
            SlowEmbedTexts,
            fn_constructor_kwargs={"folder": str(tmp_path), "model_path": tiny_path, **FIXED},
            compute=ray.data.ActorPoolStrategy(size=3),
            batch_format="pyarrow",
            batch_size=25,
            ray_remote_args_fn=lambda: {"scheduling_strategy": "SPREAD"},
        )
    )
    tables: list[pa.Table] = []
    thread = threading.Thread(target=lambda: tables.extend(ray.get(made.to_arrow_refs())))
    thread.start()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3, "all actors have begun")
    actors = [path.name.split(".") for path in tmp_path.iterdir()]
    assert doomed.node_id in [node_id for _, node_id in actors]
    os.kill(next(int(pid) for pid, node_id in actors if node_id != doomed.node_id), signal.SIGKILL)
    wait_until(lambda: len(list(tmp_path.iterdir())) > 3, "the actor has come back")
    cluster.remove_node(doomed, allow_graceful=False)
    thread.join(timeout=60)
    table = pa.concat_tables(tables).sort_by("id")
    assert table["id"].to_pylist() == list(range(n))
    np.testing.assert_allclose(vectors(table), expected(tiny_path, table["text"].to_pylist()), atol=1e-5)


def test_a_data_set_larger_than_the_object_store_streams(cluster: Cluster, tiny_path: str) -> None:
    def with_text(batch: pa.Table) -> pa.Table:
        batch = batch.append_column("text", pa.array([spelled(i) for i in batch["id"].to_pylist()]))
        return batch.append_column("beside", pa.array([bytes(ROW_BYTES)] * len(batch)))

    assert len(ray.nodes()) * STORE_BYTES < N_ROWS * ROW_BYTES
    made = (
        ray.data.range(N_ROWS, override_num_blocks=80)
        .map_batches(with_text, batch_format="pyarrow")
        .map_batches(
            EmbedTexts,
            fn_constructor_kwargs={"model_path": tiny_path, **FIXED},
            compute=TWO,
            batch_format="pyarrow",
        )
    )
    seen, most = 0, 0
    before = own_bytes()
    for batch in made.iter_batches(batch_size=100, batch_format="pyarrow"):
        seen += batch["embedding"].length() - batch["embedding"].null_count
        most = max(most, own_bytes() - before)
    assert seen == N_ROWS
    assert most < 2 * STORE_BYTES


def own_bytes() -> int:
    """Return the resident memory of this process without that of the object store, which it maps."""
    found = psutil.Process().memory_info()
    return int(found.rss - found.shared)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"column": "body"}, "there is no column 'body'; the data set has number, text"),
        ({"column": "number"}, "column 'number' is int64; it must be text"),
        ({"model_path": "/nowhere.gguf"}, "cannot load /nowhere.gguf: "),
        ({"n_workers": 2}, "there is no setting 'n_workers'"),
        ({"dimensions": 9999}, "dimensions is 9999"),
        ({"weights_sha256": "00"}, "its weights_sha256 is "),
    ],
)
def test_what_is_wrong_is_told(cluster: Cluster, tiny_path: str, settings: dict[str, Any], told: str) -> None:
    batch = pa.table({"number": [1], "text": ["red"]})
    with pytest.raises(EmbellamaError, match=re.escape(told)):
        EmbedTexts(**{"model_path": tiny_path, **FIXED, **settings})(batch)


@pytest.mark.model
def test_the_documents_examples_run(cluster: Cluster, model_path: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scale.md").read_text().partition("## Ray Data")[2].partition("## Ray Serve")[0]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": range(20), "text": [f"note {i}" for i in range(20)]}), tmp_path / "in" / "0.parquet")
    variables: dict[str, Any] = {}
    context = ray.data.DataContext.get_current()
    try:
        for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(program.replace("models/minilm.gguf", model_path).replace("/shared", str(tmp_path)), variables)
    finally:
        context.checkpoint_config = None
    assert [len(row["embedding"] or ()) for row in variables["rows"]] == [128, 0]
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list(range(20))


def test_an_error_reaches_who_asked(cluster: Cluster, tiny_path: str) -> None:
    with pytest.raises(Exception, match="column 'number' is int64; it must be text"):
        embedded(["red"], model_path=tiny_path, column="number", **FIXED)
