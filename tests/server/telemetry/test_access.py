"""The access log: a line for every request, with what is known of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server, running_server, wait_until
from tests.faults.raw import connected, read_answer, wait_hung_up

pytestmark = pytest.mark.server

FLAGS = ("--workers", "1", "--access-log")


@pytest.fixture(scope="module")
def logging_server(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("access") / "log"
    with running_server(log, "--model-path", tiny_path, "--log-format", "json", *FLAGS) as server:
        yield server


def lines(server: Server, path: str) -> list[dict[str, Any]]:
    """Return the access log's lines about a path."""
    entries = [json.loads(line) for line in server.log.read_text().splitlines()]
    return [each for each in entries if each["logger"] == "embellama.access" and each["path"] == path]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/tiny", 200),
        ("HEAD", "/livez", 200),
        ("GET", "/similarity", 405),
        ("OPTIONS", "/decode", 204),
        ("GET", "/nothing", 404),
        ("POST", "/nothing/here", 404),
    ],
)
def test_requests_that_compute_nothing_are_logged(logging_server: Server, method: str, path: str, status: int) -> None:
    assert httpx.request(method, logging_server.url + path).status_code == status
    wait_until(lambda: bool(lines(logging_server, path)), "it is logged")
    (line,) = lines(logging_server, path)
    assert line.keys() == {"time", "level", "logger", "client", "path", "status", "ms"}
    assert (line["client"], line["status"]) == ("127.0.0.1", status)
    assert line["ms"] >= 0


@pytest.mark.parametrize(
    ("sent", "path", "status"),
    [
        (b"GET /long?a=b HTTP/1.1\r\nx-long: " + b"a" * 70_000, "/long", 431),
        (b"GET /wrong HTTP/1.1\r\nno header\r\n\r\n", "/wrong", 400),
        (b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n@@@\r\n\r\n", "", 400),
        (b"CONNECT away:80 HTTP/1.1\r\nhost: x\r\n\r\n", "away:80", 400),
    ],
)
def test_requests_whose_head_is_refused_are_logged(logging_server: Server, sent: bytes, path: str, status: int) -> None:
    n_before = len(lines(logging_server, path))
    with connected(logging_server) as client:
        client.sendall(sent)
        wait_hung_up(client)
    wait_until(lambda: len(lines(logging_server, path)) == n_before + 1, "it is logged", 10)
    line = lines(logging_server, path)[-1]
    assert line.keys() == {"time", "level", "logger", "client", "path", "status", "ms"}
    assert (line["client"], line["status"]) == ("127.0.0.1", status)


def test_requests_that_offer_another_protocol_are_logged_once(logging_server: Server) -> None:
    with connected(logging_server) as client:
        client.sendall(b"GET /offered HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert read_answer(client).status == 404
    wait_until(lambda: bool(lines(logging_server, "/offered")), "it is logged")
    (line,) = lines(logging_server, "/offered")
    assert line["status"] == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "known"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": ["red", "blue"]}, 200, ("tiny", 2)),
        ("/embeddings", {"model": "no", "input": "red"}, 404, ("", 0)),
        ("/rerank", {}, 400, ("", 0)),
    ],
)
def test_requests_of_dialects_are_logged_with_what_they_asked_for(
    logging_server: Server, path: str, body: dict[str, Any], status: int, known: tuple[str, int]
) -> None:
    answer = httpx.post(logging_server.url + path, json=body)
    assert answer.status_code == status
    wait_until(lambda: bool(lines(logging_server, path)), "it is logged")
    (line,) = lines(logging_server, path)
    assert list(line)[3:] == ["request_id", "client", "path", "status", "model", "texts", "tokens", "ms"]
    assert (line["request_id"], line["status"]) == (answer.headers["x-request-id"], status)
    assert (line["model"], line["texts"]) == known
    assert line["tokens"] == int(answer.headers.get("x-compute-tokens", 0))


def test_a_path_cannot_write_lines_of_its_own(tiny_path: str, tmp_path: Path) -> None:
    with running_server(tmp_path / "log", "--model-path", tiny_path, *FLAGS) as server:
        with connected(server) as client:
            client.sendall(b"GET /a%0Afake%20line" + b"x" * 1000 + b"?secret HTTP/1.1\r\nhost: x\r\n\r\n")
            assert read_answer(client).status == 404
        wait_until(lambda: "%0Afake" in server.log.read_text(), "it is logged")
        (line,) = (line for line in server.log.read_text().splitlines() if "fake" in line)
    assert "embellama.access: client=127.0.0.1 path=/a%0Afake%20linex" in line
    assert "status=404" in line
    assert "secret" not in line
    assert len(line) < 400


def test_nothing_is_logged_of_requests_without_the_flag(server: Server) -> None:
    httpx.get(f"{server.url}/nothing")
    assert "embellama.access" not in server.log.read_text()
