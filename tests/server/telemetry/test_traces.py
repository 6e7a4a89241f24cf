"""Traces: what a collector gets of requests, by OTLP over HTTP."""

import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.collector import Collector, attributes_of
from tests.conftest import BIN, Server, StartServer, run, running_server, wait_until
from tests.server.gateway.conftest import Keys

pytestmark = pytest.mark.server

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MS = 1_000_000  # ns


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("traced") / "log"
    flags = ("--workers", "1", "--otlp-endpoint", collector.url, "--access-log", "--log-format", "json")
    with running_server(log, "--model-path", tiny_path, "--aliases", "other", *flags) as server:
        yield server


def post(server: Server, path: str, body: Any, **headers: str) -> tuple[httpx.Response, str]:
    """Send a request; return the answer and the id of its trace."""
    answer = httpx.post(server.url + path, json=body, headers=headers)
    version, trace_id, _, _ = answer.headers["traceresponse"].split("-")
    assert version == "00"
    return answer, trace_id


def test_spans_nest_and_add_up_to_the_request(traced: Server, collector: Collector) -> None:
    _, trace_id = post(traced, "/v1/embeddings", {"model": "tiny", "input": ["red red", "red blue"]})
    root, phases = collector.trace(trace_id)
    assert list(phases) == ["tokenize", "cache", "queue", "compute", "write"]
    ends = [root.start_time_unix_nano]
    for span in phases.values():
        assert span.parent_span_id == root.span_id
        assert span.start_time_unix_nano == ends[-1]
        ends.append(span.end_time_unix_nano)
    assert ends == sorted(ends)
    assert ends[-1] == root.end_time_unix_nano


def test_times_are_those_of_the_request(traced: Server, collector: Collector) -> None:
    before = time.time_ns()
    answer, trace_id = post(traced, "/v1/embeddings", {"model": "tiny", "input": "red green blue"})
    after = time.time_ns()
    root, phases = collector.trace(trace_id)
    assert before - MS <= root.start_time_unix_nano <= root.end_time_unix_nano <= after + MS
    for header, names in {"tokenization": ["tokenize"], "queue": ["cache", "queue"], "inference": ["compute"]}.items():
        taken = sum(phases[name].end_time_unix_nano - phases[name].start_time_unix_nano for name in names)
        assert taken / MS == pytest.approx(float(answer.headers[f"x-{header}-time"]), abs=0.06)  # it has one decimal


def test_a_span_names_the_prompt(traced: Server, collector: Collector) -> None:
    answer, trace_id = post(traced, "/embed", {"inputs": "red", "prompt_name": "query"})
    told = attributes_of(collector.trace(trace_id)[0])
    name, sha256 = told["embellama.prompt"], told["embellama.prompt.sha256"]
    assert (name, f"{name}; sha256={sha256}") == ("query", answer.headers["x-embellama-prompt"])


def test_a_span_says_what_was_asked(traced: Server, collector: Collector) -> None:
    body = {"model": "other", "input": ["green red", "green blue"], "encoding_format": "base64", "dimensions": 8}
    answer, trace_id = post(traced, "/v1/embeddings", body, **{"x-request-id": "said"})
    root, _ = collector.trace(trace_id)
    assert root.name == "embeddings tiny"
    assert attributes_of(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "url.path": "/v1/embeddings",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "server.port": int(traced.url.rpartition(":")[2]),
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "embellama",
        "gen_ai.request.model": "other",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.encoding_formats": ["base64"],
        "gen_ai.embeddings.dimension.count": 8,
        "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "embellama.request_id": "said",
        "embellama.texts": 2,
    }
    assert collector.resource["service.name"] == "embellama"


@pytest.mark.parametrize(
    ("path", "body", "name", "phases"),
    [
        ("/rerank", {"query": "red", "texts": ["blue"]}, "rerank tiny", {"tokenize", "cache", "queue", "compute"}),
        ("/tokenize", {"inputs": "red"}, "tokenize tiny", {"tokenize"}),
        ("/api/show", {"model": "tiny"}, "show tiny", {"tokenize"}),
    ],
)
def test_other_requests_have_the_phases_they_came_to(
    traced: Server, collector: Collector, path: str, body: Any, name: str, phases: set[str]
) -> None:
    _, trace_id = post(traced, path, body)
    root, found = collector.trace(trace_id)
    assert root.name == name
    assert found.keys() == phases | {"write"}
    assert "gen_ai.embeddings.dimension.count" not in attributes_of(root)


def test_known_rows_are_no_work(traced: Server, collector: Collector) -> None:
    body = {"model": "tiny", "input": "blue blue"}
    post(traced, "/v1/embeddings", body)
    _, trace_id = post(traced, "/v1/embeddings", body)
    root, phases = collector.trace(trace_id)
    told = attributes_of(root)
    assert told["gen_ai.usage.cache_read.input_tokens"] == told["gen_ai.usage.input_tokens"] > 0
    assert "queue" not in phases


def test_a_streamed_answer_is_one_request(traced: Server, collector: Collector) -> None:
    body = {"model": "tiny", "input": ["red " * i for i in range(1, 31)] * 6}
    _, trace_id = post(traced, "/v1/embeddings", body, accept="application/x-ndjson")
    root, phases = collector.trace(trace_id)
    assert attributes_of(root)["embellama.texts"] == 180
    assert list(phases) == ["tokenize", "cache", "queue", "compute", "write"]


def test_the_client_s_trace_goes_on(traced: Server, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=value"}
    answer, trace_id = post(traced, "/v1/embeddings", {"model": "tiny", "input": "go on"}, **headers)
    root, phases = collector.trace(TRACE)
    assert trace_id == TRACE
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{root.span_id.hex()}-01"
    assert root.parent_span_id.hex() == SPAN
    assert {span.trace_state for span in (root, *phases.values())} == {"vendor=value"}


@pytest.mark.parametrize(
    "given", ["", "00-0-0-01", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", "é", "x" * 999]
)
def test_what_is_no_traceparent_begins_a_trace(traced: Server, collector: Collector, given: str) -> None:
    headers: Any = {"traceparent": given.encode("latin-1")}
    answer, trace_id = post(traced, "/tokenize", {"inputs": "red"}, **headers)
    assert answer.status_code == 200
    root, _ = collector.trace(trace_id)
    assert root.parent_span_id == b""


def test_a_traceparent_that_comes_twice_begins_a_trace(traced: Server, collector: Collector) -> None:
    twice = [("traceparent", f"00-{TRACE}-{SPAN}-01")] * 2
    answer = httpx.post(traced.url + "/tokenize", json={"inputs": "red"}, headers=twice)
    assert TRACE not in answer.headers["traceresponse"]


def test_what_the_client_does_not_sample_is_not_sent(traced: Server, collector: Collector) -> None:
    unsampled = "a" * 32
    answer, _ = post(traced, "/tokenize", {"inputs": "red"}, traceparent=f"00-{unsampled}-{SPAN}-00")
    assert answer.headers["traceresponse"].startswith(f"00-{unsampled}-")
    assert answer.headers["traceresponse"].endswith("-00")
    _, later = post(traced, "/tokenize", {"inputs": "red"})
    collector.trace(later)
    assert not collector.has(unsampled)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"model": "tiny", "input": ""}, 400, "invalid_request_error"),
        ({"model": "no", "input": "red"}, 404, "model_not_found"),
        ({"model": "tiny", "input": "poison"}, 500, "model_error"),
    ],
)
def test_errors_say_which(traced: Server, collector: Collector, body: Any, status: int, error: str) -> None:
    answer, trace_id = post(traced, "/v1/embeddings", body)
    assert answer.status_code == status
    root, _ = collector.trace(trace_id)
    told = attributes_of(root)
    assert (told["http.response.status_code"], told["error.type"]) == (status, error)
    assert root.status.code == (root.status.STATUS_CODE_ERROR if status >= 500 else root.status.STATUS_CODE_UNSET)


def test_a_refused_key_is_an_error_of_the_request(
    collector: Collector, start_server: StartServer, tiny_path: str, tmp_path: Path
) -> None:
    keys = ("--keys-file", str(Keys(tmp_path, known={}).path), "--open-metrics")
    flags = ("--model-path", tiny_path, "--workers", "1", "--otlp-endpoint", collector.url, *keys)
    with start_server(*flags) as server:
        answer, trace_id = post(
            server, "/v1/embeddings", {"model": "tiny", "input": "red"}, authorization="Bearer wrong"
        )
    assert answer.status_code == 401
    root, phases = collector.trace(trace_id)
    told = attributes_of(root)
    assert (root.name, told["http.response.status_code"], told["error.type"]) == ("embeddings", 401, "invalid_api_key")
    assert phases.keys() == {"tokenize"}


def test_the_access_log_names_the_trace(traced: Server) -> None:
    _, trace_id = post(traced, "/tokenize", {"inputs": "red"})
    wait_until(lambda: trace_id in traced.log.read_text(), "it is logged")
    [line] = [json.loads(line) for line in traced.log.read_text().splitlines() if trace_id in line]
    assert (line["trace_id"], line["path"]) == (trace_id, "/tokenize")


def test_the_last_spans_are_sent_at_the_end(collector: Collector, start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", "--otlp-endpoint", collector.url) as server:
        _, trace_id = post(server, "/tokenize", {"inputs": "red"})
    assert collector.has(trace_id)


def test_a_share_of_requests_is_traced(collector: Collector, start_server: StartServer, tiny_path: str) -> None:
    flags = ("--otlp-endpoint", f"{collector.url}/v1/traces", "--otlp-sample-ratio", "0")
    with start_server("--model-path", tiny_path, "--workers", "1", *flags) as server:
        _, unsampled = post(server, "/tokenize", {"inputs": "red"})
        _, sampled = post(server, "/tokenize", {"inputs": "red"}, traceparent=f"00-{'b' * 32}-{SPAN}-01")
    assert collector.has(sampled)
    assert not collector.has(unsampled)


@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "is silent"])
def test_a_dead_collector_holds_nothing_up(accepts: bool, start_server: StartServer, tiny_path: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        host, port = listener.getsockname()
        if not accepts:
            listener.close()
        flags = ("--workers", "1", "--otlp-endpoint", f"http://{host}:{port}")
        with start_server("--model-path", tiny_path, *flags) as server:
            with httpx.Client(base_url=server.url) as client:
                # More spans than are queued.
                statuses = {client.post("/tokenize", json={"inputs": "red"}).status_code for _ in range(3000)}
            assert statuses == {200}
            wait_until(lambda: "spans are not sent" in server.log.read_text(), "it is logged")
            asked_at = time.monotonic()
            server.process.terminate()
            assert server.process.wait(20) == 0
            assert time.monotonic() - asked_at < 15
        log = server.log.read_text()
    assert log.count("spans are not sent") == 1
    assert "Traceback" not in log


def test_without_the_flag_nothing_is_imported_and_no_header_is_sent(server: Server, tiny_path: str) -> None:
    answer = httpx.post(
        f"{server.url}/tokenize", json={"inputs": "red"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}
    )
    assert "traceresponse" not in answer.headers
    code = (
        "import sys; from embellama_server.config import ServerConfig; from embellama_server.application import build; "
        "build(ServerConfig(model_path=sys.argv[1], max_batch_tokens=192).checked()); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert run(sys.executable, "-c", code, tiny_path).stdout == "[]\n"


def test_without_the_extra_the_flag_says_which(tiny_path: str) -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; from embellama_server.cli import main; main()"
    result = run(sys.executable, "-c", code, "--model-path", tiny_path, "--otlp-endpoint", "http://127.0.0.1:1")
    assert result.returncode == 1
    assert "opentelemetry" in result.stderr
    assert "is not installed: pip install 'embellama[otel]'" in result.stderr


def test_what_is_no_url_is_refused_unread(tiny_path: str) -> None:
    result = run(BIN / "embellama-server", "--model-path", tiny_path, "--otlp-endpoint", "me:secret@host:4318")
    assert result.returncode == 2
    assert "otlp_endpoint must begin as http://localhost:4318 does, or with https://" in result.stderr
    assert "secret" not in result.stderr
