"""What the front does when a client hangs up, whatever server runs it."""

import asyncio
from typing import Any

import orjson
from embellama_server.app import build_app
from embellama_server.state import ServerState
from starlette.types import Message, Scope

from embellama.batch import Rows


async def test_a_client_that_hangs_up_cancels_its_work_under_any_server(state: ServerState) -> None:
    submitted: asyncio.Queue[asyncio.Future[Rows]] = asyncio.Queue()

    def submit(tokens: Any, **options: Any) -> "asyncio.Future[Rows]":
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        submitted.put_nowait(future)
        return future

    state.model(None).backend.submit = submit  # type: ignore[method-assign]
    has_left = asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": orjson.dumps({"model": "tiny", "input": "red"})}]
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
    request = asyncio.ensure_future(build_app(state)(scope, receive, send))
    future = await submitted.get()
    has_left.set()
    await request
    assert future.cancelled()
    assert sent == []
    assert state.n_held_bytes == 0
