"""Ray Serve: deploy/ray/serve.yaml with two replicas, its clients, and what becomes of them under load."""

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import openai
import psutil
import pytest
from embellama_server.ray import BUSY, WAIT, WaitPolicy, settings_of
from ray.cluster_utils import Cluster

from embellama import EmbeddingEngine, EngineConfig
from embellama.errors import ConfigError
from tests.conftest import BIN, ROOT, Server, wait_until
from tests.programs import free_port, running
from tests.server.test_clients import run_program

# Long enough for a replica to be found dead, and another one to have loaded its model.
LOAD_S = 5.0

N_CLIENTS = 6

# A body for each dialect and each way to answer; Ray Serve's proxy hands all of them on.
BODIES: dict[str, Any] = {
    "/v1/embeddings": {"model": "minilm", "input": ["a cat", "a dog"]},
    "/openai/deployments/minilm/embeddings": {"input": "a cat"},
    "/v2/embed": {"model": "minilm", "texts": ["a cat"], "input_type": "search_query"},
    "/v2/rerank": {"model": "minilm", "query": "pet", "documents": ["a cat", "a car"]},
    "/v1/rerank": {"model": "minilm", "query": "pet", "documents": ["a cat", "a car"]},
    "/api/embed": {"model": "minilm", "input": "a cat"},
    "/embed": {"inputs": "a cat"},
    "/embed_all": {"inputs": "a cat"},
    "/tokenize": {"inputs": "a cat"},
}


@pytest.fixture(scope="module")
def served(cluster: Cluster, model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two replicas of the default model with a CPU each, below a prefix, and room for one more."""
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    config = msgspec.yaml.decode((ROOT / "deploy" / "ray" / "serve.yaml").read_bytes())
    config["proxy_location"] = "HeadOnly"  # both nodes of the tests have the same ports
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    application["route_prefix"] = "/below"
    application["args"] |= {"model_path": model_path, "max_batch_tokens": 192, "root_path": "/below"}
    [deployment] = application["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["autoscaling_config"] |= {"max_replicas": 3, "upscale_delay_s": 0, "look_back_period_s": 1}
    deployment["autoscaling_config"]["policy"]["policy_kwargs"]["target_wait_s"] = 1e-6
    (folder / "serve.yaml").write_bytes(msgspec.yaml.encode(config))
    url = f"http://127.0.0.1:{port}/below"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").status_code == 200 and len(replicas()) == 2
        except httpx.HTTPError:
            return False

    log = folder / "serve.log"
    command = (BIN / "serve", "run", "--address", cluster.address, folder / "serve.yaml")
    with running(log, *command, ready=ready) as process:
        server = Server(process, log)
        server.url = url
        yield server
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def replicas() -> list[psutil.Process]:
    """Return the processes of replicas."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::ServeReplica:minilm:Embellama"]:
                found.append(process)
        except psutil.NoSuchProcess:  # it went just now
            continue
    return found


@pytest.mark.model
@pytest.mark.parametrize("client", ["OpenAI", "Azure OpenAI", "Cohere", "Ollama", "Hugging Face"])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_official_clients_work_through_serve(served: Server, client: str) -> None:
    texts = ["a cat", "a dog", "a car"]
    assert run_program(client, served, texts)["vectors"] is not None
    gc.collect()  # most clients have no way to close them; another test would be blamed


@pytest.mark.model
@pytest.mark.parametrize("path", BODIES)
def test_each_dialect_works_through_serve(served: Server, path: str) -> None:
    answer = httpx.post(f"{served.url}{path}", json=BODIES[path], headers={"x-request-id": "mine"})
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.model
def test_streams_bytes_and_errors_pass_whole(served: Server, model_path: str) -> None:
    texts = [f"text {i}" for i in range(300)]
    body = {"model": "minilm", "input": texts}
    url = f"{served.url}/v1/embeddings"
    with EmbeddingEngine(EngineConfig(model_path=model_path)) as engine:
        expected = engine.embed_batch(None, texts)
    with httpx.stream("POST", url, json=body, headers={"accept": "application/x-ndjson"}, timeout=60) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    np.testing.assert_allclose([line["embedding"] for line in lines if "embedding" in line], expected, atol=2e-3)
    raw = httpx.post(url, json=body, headers={"accept": "application/octet-stream"}, timeout=60)
    np.testing.assert_allclose(np.frombuffer(raw.content, "<f4").reshape(expected.shape), expected, atol=2e-3)
    assert httpx.post(url, content=b"{").json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(url, content=b"x" * 9_000_000).status_code == 413
    assert httpx.get(f"{served.url}/nothing").status_code == 404


@pytest.mark.model
def test_no_request_fails_while_a_replica_is_killed_and_one_is_added(served: Server) -> None:
    failed: list[Exception] = []
    answered: list[int] = []
    until = time.monotonic() + LOAD_S

    def ask(number: int) -> None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=5) as client:
            while time.monotonic() < until:
                try:
                    texts = [f"text {number} {len(answered)} {i}" for i in range(8)]
                    answered.append(len(client.embeddings.create(model="minilm", input=texts).data))
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(N_CLIENTS)]
    before = {each.pid for each in replicas()}
    for thread in threads:
        thread.start()
    wait_until(lambda: len(replicas()) == 3, "a replica is added, as work waits")
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until = max(until, time.monotonic() + LOAD_S / 2)
    wait_until(lambda: len({each.pid for each in replicas()} - before) == 2, "another one takes its place")
    for thread in threads:
        thread.join()
    assert not failed
    assert set(answered) == {8}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "no model to serve"),
        ({"model_path": "m", "port": "9000"}, "port means nothing under Ray Serve"),
        ({"model_path": "m", "data_dir": "x"}, "data_dir means nothing under Ray Serve"),
        ({"model_path": "m", "workers": "2"}, "there is no setting 'workers'"),
        ({"model_path": "m", "num_workers": "two"}, "num_workers is two"),
    ],
)
def test_settings_that_are_wrong_are_named(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings_of(args)


@pytest.mark.parametrize(
    ("waits", "busy", "wanted"),
    [
        ([0.5, 0.5], [1.0, 1.0], 2),
        ([2.0, 0.0], [1.0, 0.2], 4),
        ([0.0, 0.0], [0.1, 0.1], 0.2 / 0.7),
        ([0.1, 0.1], [0.6, 0.6], 1.2 / 0.7),
        ([0.1, 0.1], [0.9, 0.9], 2),
    ],
)
def test_the_policy_adds_by_the_wait_and_takes_away_by_the_share_of_time_used(
    waits: list[float], busy: list[float], wanted: float
) -> None:
    metrics = {WAIT: dict(enumerate(waits)), BUSY: dict(enumerate(busy))}
    context = SimpleNamespace(current_num_replicas=2, target_num_replicas=2, aggregated_metrics=metrics)
    found, state = WaitPolicy()(context)
    assert found == pytest.approx(wanted)
    assert not state


def test_the_policy_keeps_what_is_there_while_nothing_is_known() -> None:
    context = SimpleNamespace(current_num_replicas=2, target_num_replicas=3, aggregated_metrics={})
    assert WaitPolicy()(context) == (3, {})
    with pytest.raises(ConfigError, match="target_wait_s is 0; it must be above 0"):
        WaitPolicy(target_wait_s=0)
