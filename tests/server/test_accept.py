"""Which kind of answer a client gets by its `accept` header."""

import httpx
import pytest
from embellama_server.accept import best_type

from tests.conftest import Server

JSON, NDJSON, BINARY = OFFERS = ("application/json", "application/x-ndjson", "application/octet-stream")


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html", JSON),
        (BINARY, BINARY),
        (f"{BINARY};q=0", JSON),
        (f"{BINARY};q=0.0, {NDJSON}; q=0.000", JSON),
        (f"{JSON}, {BINARY};q=0.1", JSON),
        (f"{BINARY};q=0.1,{JSON}", JSON),
        (f"{BINARY}, {JSON}", JSON),
        (f"{BINARY}, */*;q=0.9", BINARY),
        (f"{BINARY}, */*", JSON),
        (f"{BINARY};q=0.5, */*;q=0.9", JSON),
        (f"{BINARY};q=0.5, application/*;q=0.1, */*", BINARY),
        (f"{JSON};q=0.2, {BINARY};q=0.3, {NDJSON};q=0.4", NDJSON),
        (f"{JSON};q=0, */*", NDJSON),
        (f"{JSON};q=0", JSON),
        (f"{JSON};charset=utf-8;q=0.1, {BINARY};q=0.2", BINARY),
        (f'{JSON};note="a,b;q=0";q=0.5, {BINARY};q=0.2', JSON),
        (f'{BINARY};note="{JSON}, never ended', BINARY),
        (f"{BINARY} ; Q = 0.1 , {JSON} ; q = 0.2".lower(), JSON),
        (f"{BINARY}-other", JSON),
        (f"text/{BINARY}", JSON),
        (f"{BINARY};q=nan, {JSON};q=0.9", BINARY),
        (f"{BINARY};q=., {JSON};q=0.9", BINARY),
        (f"{BINARY};q=, {JSON};q=-1", JSON),
        (",;,=,;q;=", JSON),
    ],
)
def test_the_best_of_what_there_is(accept: str, best: str) -> None:
    assert best_type(accept, OFFERS) == best


@pytest.mark.server
@pytest.mark.model
@pytest.mark.parametrize(
    ("accepts", "content_type"),
    [
        ((JSON, f"{BINARY};q=0.1"), JSON),
        ((f"{JSON};q=0.1", BINARY), BINARY),
        ((BINARY, f"{JSON};q=0.1"), BINARY),
        ((BINARY.upper(),), BINARY),
        ((f"{NDJSON};q=0",), JSON),
        ((NDJSON, "*/*;q=0.5"), NDJSON),
    ],
)
def test_several_headers_are_one_list(server: Server, accepts: tuple[str, ...], content_type: str) -> None:
    headers = [("accept", accept) for accept in accepts]
    with httpx.Client(headers={}) as client:
        del client.headers["accept"]
        answer = client.post(f"{server.url}/v1/embeddings", json={"model": "minilm", "input": "a"}, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
