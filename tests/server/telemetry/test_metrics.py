"""What the server says of itself: metrics, logs, health."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Server, StartServer, running_server, wait_until

pytestmark = pytest.mark.server

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(server: Server) -> Samples:
    """Read /metrics: the value of each name with its labels, in order."""
    page = httpx.get(f"{server.url}/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def labelled(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


@pytest.fixture
def tiny_server(tiny_path: str, tmp_path: Path) -> Iterator[Server]:
    flags = ("--model-path", tiny_path, "--workers", "2", "--cache-bytes", "0", "--access-log", "--log-format", "json")
    with running_server(tmp_path / "log", *flags) as server:
        yield server


def test_counts_are_those_of_what_was_sent(tiny_server: Server) -> None:
    good = [{"model": "tiny", "input": ["red", "green blue"]}] * 30
    long = {"model": "tiny", "input": "red " * 200, "truncate": "end"}
    bad = [{"model": "tiny", "input": ""}] * 7 + [{"model": "no", "input": "red"}] * 5

    def post(body: object) -> int:
        return httpx.post(f"{tiny_server.url}/v1/embeddings", json=body).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(post, [*good, long, *bad]))
    n_tokens = httpx.post(f"{tiny_server.url}/embed", json={"inputs": ["red"]}).headers["x-compute-tokens"]
    found = samples(tiny_server)
    requests = {
        status: sum(
            value
            for (name, labels), value in found.items()
            if name == "embellama_requests_total"
            and ("status", status) in labels
            and ("path", "/v1/embeddings") in labels
        )
        for status in ("200", "400", "404")
    }
    assert requests == {status: statuses.count(int(status)) for status in requests}
    assert requests == {"200": 31, "400": 7, "404": 5}
    assert labelled(found, "embellama_texts_total", model="tiny") == 62
    assert labelled(found, "embellama_truncated_texts_total", model="tiny") == 1
    assert labelled(found, "embellama_tokens_total", model="tiny") > 30 * 2 + int(n_tokens)
    for phase in ("tokenization", "queue", "inference", "encoding", "total"):
        assert labelled(found, "embellama_request_seconds_count", model="tiny", phase=phase) == 32
    total = labelled(found, "embellama_request_seconds_sum", model="tiny", phase="total")
    parts = [
        labelled(found, "embellama_request_seconds_sum", model="tiny", phase=phase)
        for phase in ("tokenization", "queue", "inference", "encoding")
    ]
    assert sum(parts) == pytest.approx(total, rel=0.01)
    texts, tokens = (labelled(found, f"embellama_batch_{what}_sum", model="tiny") for what in ("texts", "tokens"))
    assert texts == 62
    assert tokens == labelled(found, "embellama_tokens_total", model="tiny")
    busy = [labelled(found, "embellama_worker_busy_seconds_total", model="tiny", worker=place) for place in "01"]
    assert sum(busy) > 0
    assert labelled(found, "embellama_worker_resident_bytes", model="tiny", worker="0") > 10_000_000
    assert labelled(found, "embellama_workers_ready", model="tiny") == 2


def test_names_of_nothing_make_no_series(tiny_server: Server) -> None:
    def n_series() -> int:
        return len({labels for name, labels in samples(tiny_server) if name == "embellama_requests_total"})

    def ask(i: int) -> None:
        httpx.post(f"{tiny_server.url}/v1/embeddings", json={"model": f"m{i}", "input": "a"})
        httpx.get(f"{tiny_server.url}/path{i}")

    ask(0)
    before = n_series()
    for i in range(1, 20):
        ask(i)
    assert n_series() == before


def test_a_worker_that_was_replaced_keeps_its_place(tiny_server: Server) -> None:
    for _ in range(3):
        tiny_server.kill_worker()
        tiny_server.wait_ready()
    found = samples(tiny_server)
    assert labelled(found, "embellama_worker_restarts_total", model="tiny") == 3
    places = {dict(labels)["worker"] for name, labels in found if name == "embellama_worker_busy_seconds_total"}
    assert places == {"0", "1"}


def test_the_log_has_a_line_of_json_for_each_request(tiny_server: Server) -> None:
    headers = {"x-request-id": "find-me"}
    httpx.post(f"{tiny_server.url}/v1/embeddings", json={"model": "tiny", "input": ["red"]}, headers=headers)
    wait_until(lambda: "find-me" in tiny_server.log.read_text(), "it is logged")
    lines = [json.loads(line) for line in tiny_server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "find-me"]
    assert (line["path"], line["status"], line["model"], line["texts"]) == ("/v1/embeddings", 200, "tiny", 1)
    assert any("listening on" in line.get("message", "") for line in lines)


def test_many_models_are_served_by_name_and_alias(
    tiny_path: str, model_path: str, start_server: StartServer, tmp_path: Path
) -> None:
    file = tmp_path / "embellama.toml"
    file.write_text(
        f"""
        num_workers = 1
        [[models]]
        model_path = "{tiny_path}"
        aliases = ["text-embedding-3-small"]
        [[models]]
        model_path = "{model_path}"
        model_name = "large"
        normalization = "l1"
        """
    )
    with start_server("--config", str(file)) as server:
        assert [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["tiny", "large"]
        assert httpx.get(f"{server.url}/health").json()["models"].keys() == {"tiny", "large"}
        found = {}
        for name in ("tiny", "text-embedding-3-small", "large"):
            body = {"model": name, "input": "red"}
            found[name] = httpx.post(f"{server.url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
        assert found["tiny"] == found["text-embedding-3-small"]
        assert len(found["large"]) == 384
        assert sum(map(abs, found["large"])) == pytest.approx(1, abs=1e-5)
        assert httpx.get(f"{server.url}/v1/models/text-embedding-3-small").json()["id"] == "tiny"
        refused = httpx.post(f"{server.url}/v1/embeddings", json={"model": "no", "input": "red"})
        assert "'tiny', 'text-embedding-3-small', 'large'" in refused.json()["error"]["message"]
        assert len(server.workers()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no model to serve"),
        ("[[models]]\nmodel_name = 'a'", "models[0].model_path is missing"),
        ("[[models]]\nmodel_path = 'a'\nport = 3", "models[0].port is no setting of a model"),
        ("[[models]]\nmodel_path = 'a'\n[[models]]\nmodel_path = 'b/a'", "'a' names two models, a and b/a"),
        ("[[models]]\nmodel_path = 'a'\nn_ctx = -1", "models[0].n_ctx is -1"),
        ("model_path = 'a'\n[[models]]\nmodel_path = 'a'", "give one or the other"),
        ("ports = 3", "there is no setting 'ports'"),
        ("port = ", "not TOML"),
    ],
)
def test_a_wrong_file_of_settings_says_where(tmp_path: Path, text: str, message: str) -> None:
    from tests.conftest import BIN, run

    file = tmp_path / "embellama.toml"
    file.write_text(text)
    done = run(BIN / "embellama-server", "--config", str(file))
    assert done.returncode in (1, 2)
    assert message in done.stderr
