"""An error that names a text by its place in a job, or in a part of one, names the client's text in the reply."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from embellama_server.app import STREAMED_TEXTS, build_app
from embellama_server.state import ServerState

from embellama.batch import Rows, Tokens
from embellama.errors import EmbeddingFailed, Overloaded
from tests.server.conftest import InstantBackend

FAULTY = STREAMED_TEXTS + 3  # in the second part


def submit(self: InstantBackend, tokens: Sequence[Tokens], **options: Any) -> "asyncio.Future[Rows]":
    """Fail on the text that is longer than the others, named by its position in `tokens`."""
    future = asyncio.get_running_loop().create_future()
    lengths = [len(text) for text in tokens]
    if max(lengths) > min(lengths):
        future.set_exception(EmbeddingFailed(lengths.index(max(lengths)), "it broke"))
    else:
        future.set_result(np.ones((len(tokens), 32), np.float32))
    return future


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_the_clients_text_is_named(state: ServerState, monkeypatch: pytest.MonkeyPatch, accept: str) -> None:
    monkeypatch.setattr(InstantBackend, "submit", submit)
    texts = ["red"] * FAULTY + ["red blue"] + ["red"] * 10
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as http:
        answer = await http.post("/v1/embeddings", json={"model": "tiny", "input": texts}, headers={"accept": accept})
    error = json.loads(answer.text.splitlines()[-1])["error"]
    assert (error["code"], error["index"]) == ("model_error", FAULTY)
    assert answer.status_code == (500 if accept == "application/json" else 200)
    assert len(answer.text.splitlines()) == (1 if accept == "application/json" else STREAMED_TEXTS + 1)


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"inputs": ["red", ""]}), ("/decode", {"ids": [[1], [9999]]})]
)
async def test_the_text_is_named_where_nothing_is_computed(state: ServerState, path: str, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as http:
        answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"].split(" ")[:2]) == (400, ["text", "1"])


async def test_a_stream_whose_first_part_was_taken_waits_for_room(
    state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, n_open = asyncio.get_running_loop(), 0

    def one_at_a_time(self: InstantBackend, tokens: Sequence[Tokens], **options: Any) -> "asyncio.Future[Rows]":
        nonlocal n_open
        if n_open:
            raise Overloaded("another part is being computed")
        n_open += 1
        future: asyncio.Future[Rows] = loop.create_future()

        def answer() -> None:
            nonlocal n_open
            n_open -= 1
            future.set_result(np.ones((len(tokens), 32), np.float32))

        loop.call_later(0.01, answer)
        return future

    monkeypatch.setattr(InstantBackend, "submit", one_at_a_time)
    body = {"model": "tiny", "input": ["red"] * 3 * STREAMED_TEXTS}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as http:
        answer = await http.post("/v1/embeddings", json=body, headers={"accept": "application/x-ndjson"})
    assert answer.status_code == 200, answer.text
    assert sum("embedding" in json.loads(line) for line in answer.text.splitlines()) == 3 * STREAMED_TEXTS
