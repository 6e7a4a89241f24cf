"""`embellama bulk --ray`: the same files as without, whatever becomes of the actors."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from embellama.bulk.cluster import ClusterConfig, for_cpus
from embellama.config import EngineConfig
from embellama.errors import ConfigError
from tests.conftest import BIN, run, wait_until

WORDS = ["red", "green", "blue", "one", "two"]
FIXED = ("--n-threads", "1", "--compute", "llama", "--max-batch-tokens", "192", "--part-rows", "200")
FAILED = 3


def rows(folder: Path, n: int) -> Path:
    """Write rows, some of which fail."""
    choose, path = random.Random(1), folder / "rows.jsonl"
    texts = [" ".join(choose.choices(WORDS, k=choose.randint(1, 30))) for _ in range(n)]
    texts[3::97] = ["" for _ in texts[3::97]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def command(source: Path, output: Path, model: str, *flags: str) -> list[str | Path]:
    return [BIN / "embellama", "bulk", source, "-o", output, "--model-path", model, *FIXED, *flags]


def test_a_job_on_a_cluster_has_the_bytes_of_one_without_though_an_actor_is_killed(
    cluster: Cluster, tiny_path: str, tmp_path: Path
) -> None:
    source, plain, clustered = rows(tmp_path, 8000), tmp_path / "plain.jsonl", tmp_path / "ray.jsonl"
    assert run(*command(source, plain, tiny_path, "--workers", "1")).returncode == FAILED
    process = subprocess.Popen(command(source, clustered, tiny_path, "--ray", cluster.address), stderr=subprocess.PIPE)
    manifest = clustered.with_name("ray.jsonl.manifest.json")
    wait_until(lambda: manifest.exists() and json.loads(manifest.read_text())["counts"]["rows"] > 0, "it computes")
    wait_until(lambda: bool(computers()), "an actor computes")
    os.kill(computers()[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == FAILED, said
    assert clustered.read_bytes() == plain.read_bytes()
    ours, theirs = (facts(path) for path in (clustered, plain))
    assert ours == theirs


def test_a_run_without_a_cluster_goes_on_with_one(cluster: Cluster, tiny_path: str, tmp_path: Path) -> None:
    source, plain, clustered = rows(tmp_path, 3000), tmp_path / "plain.npy", tmp_path / "ray.npy"
    assert run(*command(source, plain, tiny_path, "--workers", "2")).returncode == FAILED
    process = subprocess.Popen(command(source, clustered, tiny_path, "--workers", "2"), stderr=subprocess.PIPE)
    manifest = clustered.with_name("ray.npy.manifest.json")
    wait_until(lambda: manifest.exists() and '"rows": 0' not in manifest.read_text(), "it computes", pause_s=0.001)
    process.kill()
    process.communicate()
    resumed = run(*command(source, clustered, tiny_path, "--resume", "--ray", cluster.address))
    assert resumed.returncode == FAILED, resumed.stderr
    assert clustered.read_bytes() == plain.read_bytes()


def computers() -> list[int]:
    """Return the processes of the actors that compute parts."""
    family = psutil.Process().children(recursive=True)
    return [each.pid for each in family if each.cmdline()[:1] == ["ray::PartComputer.compute"]]


def facts(output: Path) -> dict[str, Any]:
    manifest = json.loads(output.with_name(f"{output.name}.manifest.json").read_text())
    return {name: value for name, value in manifest.items() if name not in ("started", "seconds")}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ray", "rows.jsonl"], "ray is 'rows.jsonl'; it must be auto, local or HOST:PORT"),
        (["--ray-actors", "2"], "ray_actors is 2, but there is no ray; without it, it means nothing"),
        (["--ray", "127.0.0.1:1"], "ray is '127.0.0.1:1': "),
    ],
)
def test_what_is_wrong_about_the_cluster_is_told_in_one_line(
    tiny_path: str, tmp_path: Path, flags: Sequence[str], told: str
) -> None:
    ended = run(*command(rows(tmp_path, 1), tmp_path / "out", tiny_path, *flags))
    assert ended.returncode in (1, 2)
    assert told in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--workers", "9"], "an actor needs 9 CPUs, and no node of the cluster has more than 3"),
        (["--model-path", "/nowhere.gguf"], "cannot load /nowhere.gguf: "),
        (["--dimensions", "9999"], "dimensions is 9999"),
    ],
)
def test_what_an_actor_cannot_do_is_told_in_one_line(
    cluster: Cluster, tiny_path: str, tmp_path: Path, flags: Sequence[str], told: str
) -> None:
    ended = run(*command(rows(tmp_path, 1), tmp_path / "out", tiny_path, "--ray", cluster.address, *flags))
    assert ended.returncode == 1
    assert told in ended.stderr.splitlines()[-1]


def test_a_model_in_shared_storage_is_fetched_and_named_alike(cluster: Cluster, tiny_path: str, tmp_path: Path) -> None:
    source, output = rows(tmp_path, 3), tmp_path / "out.jsonl"
    uri = Path(tiny_path).as_uri()
    ended = run(*command(source, output, uri, "--ray", cluster.address, "--ray-actors", "1"))
    assert ended.returncode == 0, ended.stderr
    assert facts(output)["model"]["name"] == "tiny"


@pytest.mark.parametrize(
    ("config", "n_cpus", "workers", "threads"),
    [({}, 4, 4, 1), ({}, 0.5, 1, 1), ({}, 32, 8, 4), ({"num_workers": 2}, 4, 2, 2), ({"n_threads": 2}, 4, 2, 2)],
)
def test_an_actor_uses_the_cpus_that_it_was_given(
    config: dict[str, int], n_cpus: float, workers: int, threads: int
) -> None:
    made = for_cpus(EngineConfig(model_path="m.gguf", **config), n_cpus)  # type: ignore[arg-type]
    assert (made.num_workers, made.n_threads) == (workers, threads)


def test_a_cluster_config_leaves_the_workers_to_the_nodes() -> None:
    assert ClusterConfig(model_path="m", ray="head:6379").checked().num_workers == 0
    assert ClusterConfig(model_path="m").checked().num_workers > 0
    with pytest.raises(ConfigError, match="ray is 'head'; it must be"):
        ClusterConfig(model_path="m", ray="head").checked()
