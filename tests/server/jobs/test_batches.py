"""Batches, as OpenAI's own client meets them: a real server, from a file to its answers."""

import json
import re
import sys
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.conftest import ROOT, StartServer, run
from tests.server.jobs.conftest import Client, line, lines

pytestmark = pytest.mark.server


def test_a_batch_answers_each_line_as_a_live_request(client: Client) -> None:
    inputs: list[Any] = ["red", ["green", "blue one"], [[7, 8], [9]], "red", {"text": "b"}]
    asked = [line(f"line {i}", each) for i, each in enumerate(inputs)]
    batch = client.run([*asked, "", " "], metadata={"job": "colours"})
    assert (batch.status, batch.model, batch.metadata, batch.errors) == ("completed", "tiny", {"job": "colours"}, None)
    counts = batch.request_counts
    assert counts
    assert (counts.total, counts.completed, counts.failed) == (5, 4, 1)
    answers = client.lines(batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == ["line 0", "line 1", "line 2", "line 3"]
    for asking, answer in zip(asked, answers, strict=False):
        assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        live = httpx.post(f"{client.url}/v1/embeddings", json=asking["body"]).json()
        body = answer["response"]["body"]
        vectors, expected = ([item.pop("embedding") for item in each["data"]] for each in (body, live))
        assert body == live
        assert np.allclose(vectors, expected, atol=1e-3)
    assert batch.usage
    assert batch.usage.total_tokens == sum(answer["response"]["body"]["usage"]["total_tokens"] for answer in answers)


def test_what_is_wrong_with_a_body_is_in_the_error_file(client: Client) -> None:
    bad = {"text": ["no text"]}
    long = line("long", "red " * 100)
    batch = client.run([line("good"), line("empty", ""), long, line("bad", bad), line("nan", "poison")])
    assert batch.status == "completed"
    found = {each["custom_id"]: each for each in client.lines(batch.error_file_id)}
    assert {name: (each["line"], each["response"]["status_code"]) for name, each in found.items()} == {
        "empty": (2, 400),
        "long": (3, 400),
        "bad": (4, 400),
        "nan": (5, 500),
    }
    live = httpx.post(f"{client.url}/v1/embeddings", json=long["body"]).json()
    assert found["long"]["response"]["body"] == live
    assert [each["custom_id"] for each in client.lines(batch.output_file_id)] == ["good"]


def test_documents_are_ranked(client: Client) -> None:
    body = {"model": "tiny", "query": "red", "documents": ["blue", "red"], "return_documents": True}
    asked = {"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": body}
    batch = client.run([asked], endpoint="/v1/rerank")
    [answer] = client.lines(batch.output_file_id)
    assert [each["index"] for each in answer["response"]["body"]["results"]] == [1, 0]


@pytest.mark.parametrize(
    ("bad", "code", "param", "at"),
    [
        ("{", "invalid_json_line", None, 2),
        ("[]", "invalid_request", None, 2),
        (json.dumps({**line("b"), "body": 3}), "invalid_request", None, 2),
        (json.dumps({"custom_id": "b", "method": "POST", "url": "/v1/embeddings"}), "invalid_request", "body", 2),
        (json.dumps(line("a")), "duplicate_custom_id", "custom_id", 2),
        (json.dumps(line("")), "invalid_custom_id", "custom_id", 2),
        (json.dumps(line("b", method="GET")), "invalid_method", "method", 2),
        (json.dumps(line("b", url="/v1/rerank")), "invalid_url", "url", 2),
        (json.dumps(line("b", body={"model": "other", "input": "a"})), "mismatched_model", "body.model", 2),
        ('{"custom_id": "' + "x" * 5_000_000 + '"}', "invalid_json_line", None, 2),
    ],
)
def test_a_wrong_line_fails_the_batch_and_is_named(
    client: Client, bad: str, code: str, param: str | None, at: int
) -> None:
    batch = client.run([line("a"), bad])
    assert batch.status == "failed"
    assert batch.errors
    assert batch.errors.data
    [error] = batch.errors.data
    assert (error.code, error.param, error.line) == (code, param, at)
    assert batch.output_file_id is batch.error_file_id is None


def test_a_file_must_have_lines_and_a_model_that_is_served(client: Client) -> None:
    unknown = line("a", body={"model": "other", "input": "a"})
    for asked, code in (([], "empty_file"), ([unknown], "model_not_found")):
        batch = client.run(asked)
        assert batch.status == "failed"
        assert batch.errors
        assert batch.errors.data
        assert [error.code for error in batch.errors.data] == [code]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "tomorrow"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 10}}, "output_expires_after.seconds"),
    ],
)
def test_a_wrong_field_of_a_batch_is_named(client: Client, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.begin([line("a")], **options)
    assert refused.value.param == param


def test_cancelling_answers_at_once_and_keeps_finished_lines(client: Client) -> None:
    asked = lines(10_000)
    batch = client.begin(asked)
    while (counts := client.openai.batches.retrieve(batch.id).request_counts) is None or not counts.completed:
        time.sleep(0.02)
    started = time.monotonic()
    client.openai.batches.cancel(batch.id)
    assert time.monotonic() - started < 1
    batch = client.wait(batch)
    assert batch.status == "cancelled"
    assert batch.request_counts
    answers = client.lines(batch.output_file_id)
    assert [each["custom_id"] for each in answers] == [each["custom_id"] for each in asked[: len(answers)]]
    assert len(answers) == batch.request_counts.completed >= counts.completed
    with pytest.raises(openai.ConflictError):
        client.openai.batches.cancel(client.run([line("a")]).id)


def test_lists_come_in_pages(client: Client) -> None:
    made = [client.begin([line("a")]).id for _ in range(3)]
    first = client.openai.batches.list(limit=2)
    assert ([each.id for each in first.data], first.has_more) == ([made[2], made[1]], True)
    following = client.openai.batches.list(limit=2, after=made[1])
    assert following.data[0].id == made[0]
    assert {each.id for each in client.openai.batches.list(limit=1)} >= {*made}


def test_counts_are_told(client: Client) -> None:
    client.run([line("a"), line("b", "")])
    page = httpx.get(f"{client.url}/metrics").text
    assert 'embellama_jobs{status="completed"}' in page
    assert 'embellama_job_lines_total{result="failed"}' in page


def test_nothing_is_kept_without_a_folder(tiny_path: str, start_server: StartServer) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", ready=False) as server:
        for path in ("/v1/files", "/v1/batches", "/v1/files/x/content"):
            answer = httpx.get(server.url + path)
            assert (answer.status_code, "--data-dir" in answer.json()["error"]["message"]) == (404, True)


def test_the_documents_program_runs(client: Client) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "batches.md").read_text(), re.DOTALL)
    result = run(sys.executable, "-c", program.replace("http://127.0.0.1:8000", client.url).replace("minilm", "tiny"))
    assert result.returncode == 0, result.stderr
    assert [printed.split()[0] for printed in result.stdout.splitlines()] == ["1", "2"]
