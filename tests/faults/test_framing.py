"""Where a request ends is never in doubt: no byte of a body is read as a request of its own (request smuggling).

Each test sends bodies that hold a whole request, `INNER`. If that is ever answered, a proxy in front would give its
answer to somebody else.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.conftest import Server, running_server, wait_until
from tests.faults.raw import Answer, connected, embed, read_answer, request, wait_accepted, wait_hung_up

pytestmark = pytest.mark.server

INNER = b"GET /inner HTTP/1.1\r\nhost: x\r\n\r\n"
ASK = b'{"model": "tiny", "input": "red", "more": "'
BODY = ASK.ljust(64) + b'"}'
HIDING = b'{"model": "tiny", "input": "red"}\r\n' + INNER  # JSON with more after it: 400
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"
NEXT = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"

UPGRADES = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAA\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n",
    "kept": b"connection: keep-alive, Upgrade\r\nupgrade: TLS/1.0, h2c\r\n",
    "unknown": b"upgrade: x\r\nconnection: upgrade\r\n",
    "two lines": b"connection: keep-alive\r\nconnection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n",
}


@pytest.fixture(scope="module")
def server(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("framing") / "log"
    with running_server(log, "--model-path", tiny_path, "--workers", "1", "--access-log") as server:
        yield server
    assert "Traceback" not in log.read_text()
    assert "/inner" not in log.read_text(), "a body was read as a request"


def told_by(framing: str, body: bytes) -> bytes:
    """Write the end of a head, and a body that is framed as it says."""
    if framing == "length":
        return b"content-length: %d\r\n\r\n%s" % (len(body), body)
    middle = len(body) // 2
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (body[:middle], body[middle:]))
    return b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-trailer: y\r\n\r\n"


def send(client: socket.socket, server: Server, sent: bytes, n_bytes: int) -> None:
    """Send, `n_bytes` at a time; the server reads each piece before the next one comes."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(sent), n_bytes):
        client.sendall(sent[start : start + n_bytes])
        if n_bytes < len(sent):
            wait_accepted(server, [client])


def vector(answer: Answer) -> list[float]:
    assert answer.status == 200, answer
    return list(json.loads(answer.body)["data"][0]["embedding"])


@pytest.fixture(scope="module")
def red(server: Server) -> list[float]:
    with connected(server) as client:
        client.sendall(request(embed("red")))
        return vector(read_answer(client))


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("n_bytes", [100_000, 150, 37])
def test_a_request_that_offers_another_protocol_is_answered_and_the_connection_goes_on(
    server: Server, red: list[float], upgrade: str, framing: str, n_bytes: int
) -> None:
    one = HEAD + UPGRADES[upgrade] + told_by(framing, BODY)
    with connected(server) as client:
        send(client, server, request(embed("red")) + one + one + NEXT + one, n_bytes)
        answers = [read_answer(client) for _ in range(5)]
        assert answers.pop(3).body == b"ok"
        for answer in answers:
            assert vector(answer) == pytest.approx(red, abs=1e-4)
            assert "upgrade" not in answer.headers


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("upgrade", [*UPGRADES, ""])
@pytest.mark.parametrize("cut", [0, -len(INNER)], ids=["whole", "cut before the inner one"])
def test_a_request_in_a_body_is_none(server: Server, upgrade: str, framing: str, cut: int) -> None:
    one = HEAD + UPGRADES.get(upgrade, b"") + told_by(framing, HIDING)
    inner = one.index(b"GET /inner") if framing == "length" else len(one) - 20
    with connected(server) as client:
        if cut:
            client.sendall(one[:inner])
            wait_accepted(server, [client])
            client.sendall(one[inner:] + NEXT)
        else:
            client.sendall(one + NEXT)
        assert read_answer(client).status == 400
        assert read_answer(client).body == b"ok"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
@pytest.mark.parametrize("body", [b"", INNER], ids=["no body", "a body"])
def test_methods_without_a_body_may_have_one_and_offer_another_protocol(
    server: Server, method: str, body: bytes
) -> None:
    length = b"content-length: %d\r\n" % len(body) if body else b""
    sent = method.encode() + b" /livez HTTP/1.1\r\nhost: x\r\n" + UPGRADES["h2c"] + length + b"\r\n" + body
    with connected(server) as client:
        client.sendall(sent + NEXT)
        answer = b""
        while not answer.endswith(b"\r\n\r\nok") or answer.count(b"HTTP/1.1 ") < 2:
            piece = client.recv(65536)
            assert piece, answer
            answer += piece
    assert answer.count(b"HTTP/1.1 ") == 2


CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)

# Heads that one server may read in one way and another in another, and what comes after them.
AMBIGUOUS = {
    "length and chunked": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "chunked and length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + INNER,
    "two lengths": b"content-length: 0\r\ncontent-length: %d\r\n\r\n%s" % (len(INNER), INNER),
    "the same length twice": b"content-length: %d\r\ncontent-length: %d\r\n\r\n%s" % (len(INNER), len(INNER), INNER),
    "a list of lengths": b"content-length: %d, %d\r\n\r\n%s" % (len(INNER), len(INNER), INNER),
    "an empty length": b"content-length:\r\n\r\n" + INNER,
    "a signed length": b"content-length: +%d\r\n\r\n%s" % (len(INNER), INNER),
    "a hexadecimal length": b"content-length: 0x1f\r\n\r\n" + INNER,
    "a length and words": b"content-length: 5 5\r\n\r\n" + INNER,
    "a fractional length": b"content-length: 5.0\r\n\r\n" + INNER,
    "a folded length": b"content-length:\r\n 5\r\n\r\n" + INNER,
    "a folded header": b"x-a: b\r\n content-length: 5\r\n\r\n" + INNER,
    "a space before the first header": b" x-a: b\r\ncontent-length: 5\r\n\r\n" + INNER,
    "a space before the colon": b"content-length : %d\r\n\r\n%s" % (len(INNER), INNER),
    "a tab before the colon": b"transfer-encoding\t: chunked\r\n\r\n" + CHUNK,
    "a name with a zero": b"content\0-length: 5\r\n\r\n" + INNER,
    "a value with a zero": b"x-a: \0\r\ncontent-length: 5\r\n\r\n" + INNER,
    "no name": b": 5\r\ncontent-length: 5\r\n\r\n" + INNER,
    "no colon": b"content-length 5\r\n\r\n" + INNER,
    "a lone carriage return": b"x-a: b\rcontent-length: 5\r\n\r\n" + INNER,
    "a lone line feed": b"x-a: b\ncontent-length: 5\r\n\r\n" + INNER,
    "an end of line feeds": b"content-length: %d\n\n%s" % (len(INNER), INNER),
    "identity": b"transfer-encoding: identity\r\n\r\n" + INNER,
    "gzip alone": b"transfer-encoding: gzip\r\n\r\n" + INNER,
    "unknown": b"transfer-encoding: xchunked\r\n\r\n" + CHUNK,
    "quoted": b'transfer-encoding: "chunked"\r\n\r\n' + CHUNK,
    "empty encoding": b"transfer-encoding:\r\n\r\n" + CHUNK,
    "a comma before": b"transfer-encoding: ,chunked,\r\n\r\n" + CHUNK,
    "chunked, then identity": b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNK,
    "chunked, then identity in a line": b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n" + CHUNK,
    "chunked twice": b"transfer-encoding: chunked, chunked\r\n\r\n" + CHUNK,
    "a vertical tab": b"transfer-encoding: \x0bchunked\r\n\r\n" + CHUNK,
    "a length in the trailer": b"transfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 30\r\n\r\n" + INNER,
    "a hexadecimal chunk": b"transfer-encoding: chunked\r\n\r\n0x1f\r\n%s\r\n0\r\n\r\n" % INNER,
    "a space after the size": b"transfer-encoding: chunked\r\n\r\n1f \r\n%s\r\n0\r\n\r\n" % INNER,
    "a size and a line feed": b"transfer-encoding: chunked\r\n\r\n1f\n%s\r\n0\r\n\r\n" % INNER,
    "no size": b"transfer-encoding: chunked\r\n\r\n\r\n" + INNER,
    "an extension with a line feed": b"transfer-encoding: chunked\r\n\r\n1f;a=\nb\r\n%s\r\n0\r\n\r\n" % INNER,
    "a chunk longer than told": b"transfer-encoding: chunked\r\n\r\n2\r\nabcd\r\n" + CHUNK + INNER,
    "a chunk that ends in other bytes": b"transfer-encoding: chunked\r\n\r\n2\r\nabXX0\r\n\r\n" + INNER,
    "a size beyond 64 bits": b"transfer-encoding: chunked\r\n\r\n1000000000000001f\r\n" + INNER,
}


@pytest.mark.parametrize("upgrade", ["", "h2c"])
@pytest.mark.parametrize("how", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused_and_hung_up_on(server: Server, how: str, upgrade: str) -> None:
    with connected(server) as client:
        with suppress(ConnectionError):
            client.sendall(HEAD + UPGRADES.get(upgrade, b"") + AMBIGUOUS[how] + NEXT)
        said = wait_hung_up(client)
    assert said.startswith(b"HTTP/1.1 400 "), said
    assert said.count(b"HTTP/1.1 ") == 1, said


@pytest.mark.parametrize("before", [b"", NEXT, HEAD + told_by("length", BODY)], ids=["", "after a page", "after texts"])
@pytest.mark.parametrize("path", [b"/v1/embeddings", b"/tokenize", b"/v1/rerank"])
def test_a_body_that_turns_out_to_be_no_http_is_logged_and_counted_with_the_status_that_was_sent(
    server: Server, path: bytes, before: bytes
) -> None:
    marked = path + b"?" + str(id(path)).encode()
    logged_before = server.log.read_text()
    with connected(server) as client:
        client.sendall(
            before + b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n" % marked
        )
        wait_accepted(server, [client])
        client.sendall(b"XYZ\r\n")
        assert b"HTTP/1.1 400 " in wait_hung_up(client)
    refused = f"path={path.decode()} status=400"
    wait_until(lambda: refused in server.log.read_text()[len(logged_before) :], "it is logged")
    assert "status=0" not in server.log.read_text()[len(logged_before) :]


@pytest.mark.parametrize("target", ["x:443", "/v1/embeddings", "http://x/v1/embeddings", "*"])
@pytest.mark.parametrize("upgrade", ["", "h2c"])
def test_a_tunnel_is_refused_and_what_comes_through_it_is_not_read(server: Server, target: str, upgrade: str) -> None:
    head = b"CONNECT %s HTTP/1.1\r\nhost: x\r\n%s\r\n" % (target.encode(), UPGRADES.get(upgrade, b""))
    with connected(server) as client:
        client.sendall(head + INNER)
        said = wait_hung_up(client)
    assert said.startswith(b"HTTP/1.1 400 "), said
    assert said.count(b"HTTP/1.1 ") == 1, said


@pytest.mark.parametrize(
    "target",
    ["http://x/v1/embeddings", "http://user@other:1/v1/embeddings?a=b", "/v1/embeddings#part", "/v1/embeddings?"],
)
def test_other_forms_of_a_target_mean_the_same_path(server: Server, red: list[float], target: str) -> None:
    with connected(server) as client:
        client.sendall(request(embed("red")).replace(b"/v1/embeddings", target.encode(), 1) + NEXT)
        assert vector(read_answer(client)) == pytest.approx(red, abs=1e-4)
        assert read_answer(client).body == b"ok"


@pytest.mark.parametrize(
    "head", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST / HTTP/1.2\r\n\r\n", b"post / HTTP/1.1\r\n\r\n"]
)
def test_other_versions_of_http_are_refused(server: Server, head: bytes) -> None:
    with connected(server) as client:
        client.sendall(head + INNER)
        said = wait_hung_up(client)
    assert said.startswith(b"HTTP/1.1 400 "), said
    assert said.count(b"HTTP/1.1 ") == 1, said


def test_a_compressed_transfer_is_refused_as_a_compressed_body_is(server: Server) -> None:
    with connected(server) as client:
        client.sendall(HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNK + NEXT)
        answer = read_answer(client)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (415, "unsupported_encoding")
        assert read_answer(client).body == b"ok"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_nothing_after_the_last_request_of_a_connection_is_answered(server: Server, version: str) -> None:
    close = "connection: close" if version == "1.1" else "x-a: b"
    with connected(server) as client:
        client.sendall(request(embed("red"), close, version=version) + INNER)
        said = wait_hung_up(client)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("garbage", [b"HELLO\r\n\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"])
@pytest.mark.parametrize("n_before", [1, 3])
def test_what_is_refused_waits_for_the_answers_before_it(
    server: Server, red: list[float], garbage: bytes, n_before: int
) -> None:
    with connected(server) as client:
        client.sendall(request(embed("red")) * n_before + garbage)
        for _ in range(n_before):
            assert vector(read_answer(client)) == pytest.approx(red, abs=1e-4)
        answer = read_answer(client)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "bad_request")
        assert wait_hung_up(client) == b""


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("flags", [("--http2",), ("--http2", "-H", "transfer-encoding: chunked"), ("--http1.1",)])
def test_curl_is_answered_whatever_version_it_offers(server: Server, flags: tuple[str, ...]) -> None:
    command = ("curl", "-sS", "--fail", *flags, "-H", "content-type: application/json", "-d", embed("red").decode())
    url = f"{server.url}/v1/embeddings"
    done = subprocess.run([*command, url, "--next", *command[1:], url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"embedding"') >= 2


def test_no_inner_request_was_logged(server: Server) -> None:
    wait_until(lambda: "/livez" in server.log.read_text(), "requests are logged")
    assert "/inner" not in server.log.read_text()
