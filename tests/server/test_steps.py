"""Steps stand before every request, in the order in which they are listed: the fast path, pages, streams, refusals."""

from collections.abc import AsyncIterator

import httpx
import pytest
from embellama_server import app
from embellama_server.app import Step, build_app, steps
from embellama_server.application import build
from embellama_server.config import ServerConfig
from embellama_server.state import ServerState
from embellama_server.telemetry.access import AccessLog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Seen = list[tuple[str, str, int]]  # step, path, status


def step_named(name: str, seen: Seen) -> Step:
    """Make a step that notes the path and status of each request."""

    def step(inner: ASGIApp) -> ASGIApp:
        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seen.append((name, scope["path"], message["status"]))
                await send(message)

            await inner(scope, receive, watched)

        return noting

    return step


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
async def http(state: ServerState, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with two steps, `outer` listed before `inner`."""
    monkeypatch.setattr(app, "steps", lambda *_: [step_named("outer", seen), step_named("inner", seen)])
    transport = httpx.ASGITransport(build_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "accept", "status"),
    [
        ("POST", "/v1/embeddings", "application/json", 200),
        ("POST", "/v1/embeddings", "application/x-ndjson", 200),
        ("POST", "/embed", "*/*", 400),
        ("GET", "/v1/models", "*/*", 200),
        ("GET", "/docs", "*/*", 200),
        ("GET", "/v1/embeddings", "*/*", 405),
        ("OPTIONS", "/v1/embeddings", "*/*", 204),
        ("GET", "/nothing", "*/*", 404),
        ("POST", "/nothing", "*/*", 404),
    ],
)
async def test_a_step_sees_every_request_in_the_order_listed(
    http: httpx.AsyncClient, seen: Seen, method: str, path: str, accept: str, status: int
) -> None:
    body = {"model": "tiny", "input": ["red", "blue"]}
    answer = await http.request(method, path, json=body, headers={"accept": accept})
    assert answer.status_code == status
    assert accept in ("*/*", answer.headers.get("content-type"))
    # The reply passes the inner one first.
    assert seen == [("inner", path, status), ("outer", path, status)]


def test_a_step_that_is_off_is_not_there(state: ServerState) -> None:
    assert steps(state) == []


def test_the_access_log_is_a_step(tiny_path: str) -> None:
    config = ServerConfig(model_path=tiny_path, access_log=True, max_batch_tokens=192, num_workers=1)
    assert steps(build(config.checked())) == [AccessLog]
