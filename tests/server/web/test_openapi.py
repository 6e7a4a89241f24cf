"""What `/openapi.json` says is what the server does: schemathesis asks what may be asked, and what may not."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from embellama_server.dialects import DIALECTS
from embellama_server.jobs.routes import routes as job_routes
from embellama_server.state import ServerState
from embellama_server.web import admin, bench, docs, html, live, ollama, openapi, page, pages, projection
from hypothesis import HealthCheck, settings

from tests.conftest import Server, running_server

pytestmark = pytest.mark.server

# A description cannot say all that a request must be: a text is not empty, an id is in the vocabulary.
config = schemathesis.Config.from_dict({"checks": {"positive_data_acceptance": {"enabled": False}}})
schema = schemathesis.openapi.from_dict(openapi.description("tiny"), config=config)
ending = schema.exclude(path=live.EVENTS, method="GET")  # test_live.py reads that one

PATHS = [path for dialect in DIALECTS for path in dialect.paths]

few = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def target(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openapi")
    log, data = folder / "log", str(folder / "data")
    with running_server(log, "--model-path", tiny_path, "--workers", "1", "--data-dir", data) as server:
        yield server
        assert "unexpected error" not in log.read_text()


@pytest.mark.parametrize("accept", ["*/*"])  # without a parameter all of schemathesis's tests have the same id
@ending.parametrize()
@few
def test_the_server_keeps_its_description(case: schemathesis.Case[Any], target: Server, accept: str) -> None:
    with_a_model(case).call_and_validate(base_url=target.url, headers={"accept": accept})


@pytest.mark.parametrize("accept", ["application/octet-stream", "application/x-ndjson"])
@schema.include(path="/v1/embeddings", method="POST").parametrize()
@few
def test_it_does_whatever_kind_of_answer_is_wanted(case: schemathesis.Case[Any], target: Server, accept: str) -> None:
    answer = with_a_model(case).call(base_url=target.url, headers={"accept": accept})
    case.validate_response(answer)
    content_type = "".join(answer.headers["content-type"])
    assert content_type == (accept if answer.status_code == 200 else "application/json")
    if content_type == "application/x-ndjson":
        *items, last = [json.loads(line) for line in answer.text.splitlines()]
        assert [item["index"] for item in items] == list(range(len(items)))
        assert last["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", PATHS)
def test_the_descriptions_example_works(target: Server, path: str) -> None:
    body = openapi.description("tiny")["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = httpx.post(f"{target.url}{path.replace('{model}', 'tiny')}", json=body)
    assert answer.status_code == 200, answer.text
    schema[path]["POST"].validate_response(answer)


def with_a_model(case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Ask for the model that there is, lest every answer be 404."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"
    return case


def test_every_path_is_described(target: Server, state: ServerState) -> None:
    rooms = (live, page, pages, ollama, admin, openapi, docs, projection)
    listed = [*job_routes(state, None), *bench.routes(), *(route for room in rooms for route in room.routes(state))]
    paths = {route.path.replace(":path", "") for route in listed if not route.path.startswith(html.STATIC)}
    assert {*PATHS, *paths} == openapi.description("tiny")["paths"].keys()
    assert httpx.get(f"{target.url}/openapi.json").json() == json.loads(json.dumps(openapi.description("tiny")))
