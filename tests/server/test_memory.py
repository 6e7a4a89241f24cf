"""A request that waits for a worker holds token ids, not its texts."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from embellama_server.app import build_app
from embellama_server.dialects import DIALECTS
from embellama_server.dialects.base import ParsedRequest
from embellama_server.held import HeldBytes
from embellama_server.state import ServerState

from embellama.batch import Rows, Tokens
from tests.server.conftest import InstantBackend

SHORT, LONG = "red", "red " * 100  # tokenized on the event loop, and in a thread


@pytest.mark.parametrize("text", [SHORT, LONG], ids=["loop", "thread"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "tiny", "truncate": "end", "input": ["blue", ...]}),
        ("/v1/rerank", {"query": "blue", "truncate": "end", "documents": [..., "a"]}),
        ("/embed", {"truncate": True, "inputs": ["blue", ...]}),
        ("/api/embed", {"model": "tiny", "input": ["blue", ...]}),
    ],
)
async def test_texts_are_let_go_while_a_request_waits(
    state: ServerState, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], text: str
) -> None:
    body = {
        name: [text if each is ... else each for each in value] if isinstance(value, list) else value
        for name, value in body.items()
    }
    [dialect] = (each for each in DIALECTS if path in each.paths)
    inputs: list[object] = []
    references: list[int] = []
    parse, submit = type(dialect).parse, InstantBackend.submit

    def noting_inputs(self: Any, body: bytes, accept: str) -> ParsedRequest:
        request: ParsedRequest = parse(self, body, accept)
        inputs.append(request.inputs)
        return request

    def counting_references(self: InstantBackend, tokens: Sequence[Tokens], **options: Any) -> "asyncio.Future[Rows]":
        references.append(sys.getrefcount(inputs[0]))
        return submit(self, tokens, **options)

    monkeypatch.setattr(type(dialect), "parse", noting_inputs)
    monkeypatch.setattr(InstantBackend, "submit", counting_references)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as http:
        assert (await http.post(path, json=body)).status_code == 200
    assert references == [2], "this test's own, and the one that counting takes"


async def test_rows_of_tokens_count_as_what_they_take(state: ServerState) -> None:
    held: list[int] = []
    reserve = HeldBytes.reserve

    def watched(self: HeldBytes, n_bytes: int) -> None:
        held.append(n_bytes)
        reserve(self, n_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldBytes, "reserve", watched)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as http:
            await http.post("/embed_all", json={"inputs": "red " * 20})
    assert max(held) >= 4 * 32 * 20
