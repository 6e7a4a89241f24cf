"""A Ray cluster of several nodes on this machine, started when the first test wants it."""

import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

# What Ray's own modules warn of when they are imported is not ours.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in ("ray.data", "ray.serve"):
        importlib.import_module(name)

# The least that Ray takes.
STORE_BYTES = 80_000_000

# One for each digit; of other words, the tiny model knows only that they are none of its own.
WORDS = ("red", "green", "blue", "one", "two", "three", "a", "b", "c", "d")

# Settings with which nothing is measured and all machines batch alike.
FIXED: dict[str, Any] = {"compute": "llama", "max_batch_tokens": 192}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("default"))  # Ray's own


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with a head of three CPUs and a node of one, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"USAGE_STATS_ENABLED": "0", "DATA_DISABLE_PROGRESS_BARS": "1", "DEDUP_LOGS": "0"}.items():
            patch.setenv(f"RAY_{name}", value)
        cluster = Cluster(initialize_head=True, head_node_args=node(3))
        cluster.add_node(**node(1))
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def node(n_cpus: int) -> dict[str, Any]:
    """Return the arguments of a node with so many CPUs."""
    return {"num_cpus": n_cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}


@pytest.fixture(scope="session", autouse=True)
def no_address() -> None:
    """Forget a cluster that the one who runs the tests has."""
    os.environ.pop("RAY_ADDRESS", None)


def spelled(number: int) -> str:
    """Return a text of words that the tiny model knows, another one for each number."""
    return " ".join(WORDS[int(digit)] for digit in str(number))
