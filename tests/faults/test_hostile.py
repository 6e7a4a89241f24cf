"""Clients that send what no client should: each is answered or hung up on, and nobody else notices."""

import gzip
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import numpy as np
import psutil
import pytest

from tests.conftest import wait_until
from tests.faults.conftest import FaultyServer, faulty_server
from tests.faults.raw import Answer, connected, embed, read_answer, request, wait_hung_up

pytestmark = [pytest.mark.server]


@pytest.fixture(scope="module")
def shared(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    flags = ("--model-path", tiny_path, "--workers", "1", "--timeout-ms", "1500")
    constants = ("protocol.HEAD_S=1", "protocol.LINGER_S=1", "protocol.UNREAD_S=1")
    with faulty_server(tmp_path_factory.mktemp("hostile"), *flags, constants=constants) as server:
        yield server


@pytest.fixture
def target(shared: FaultyServer) -> Iterator[FaultyServer]:
    """A server that must be as well after the test as before."""
    workers = shared.workers()
    n_before = shared.process.num_fds()
    yield shared
    wait_until(lambda: shared.process.num_fds() <= n_before, "the connections are gone")
    assert shared.health()["status"] == "ok"
    assert shared.workers() == workers
    answer = httpx.post(f"{shared.url}/v1/embeddings", json={"model": "tiny", "input": "red"})
    assert answer.status_code == 200


def code_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


def ask(server: FaultyServer, *pieces: bytes) -> Answer:
    with connected(server) as client:
        for piece in pieces:
            client.sendall(piece)
        return read_answer(client)


CHUNKED = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (request(gzip.compress(embed("red")), "content-encoding: gzip"), 415, "unsupported_encoding"),
        (request(b"[" * 1_000_000), 400, "None"),
        (request(b'{"model": "tiny", "input": ' + b"[" * 1_000_000), 400, "None"),
        (request(b'{"model": "tiny", "x": ' + b'{"a":' * 1_000_000), 400, "None"),
        (request(embed("x" * 10_000_000)), 413, "request_too_large"),
        (request(b'{"model": "tiny", "input": "\\ud800"}'), 400, "None"),
        (request(b'{"model": "tiny", "input": ["red", "\\udfff x"]}'), 400, "None"),
        (request(b'{"model": "tiny", "input": "\xff\xfe"}'), 400, "None"),
        (request(embed("red", "ti\0ny")), 404, "model_not_found"),
        (request(embed("red", "x" * 1_000_000)), 404, "model_not_found"),
        (request(b'{"model": "\\ud800", "input": "red"}'), 400, "None"),
        (request(b""), 400, "None"),
        (request(b"null"), 400, "None"),
        (request(embed([[2**31]])), 400, "None"),
        (request(embed([[-1]])), 400, "None"),
        (request(b'{"model": "tiny", "input": [[1e400]]}'), 400, "None"),
        (request(embed([["red"]])), 400, "None"),
        (request(b'{"model": "tiny", "input": "red", "dimensions": 99999999999999999999}'), 400, "None"),
        (CHUNKED + b"zz\r\n", 400, "bad_request"),
        (CHUNKED + b"ffffffffffffffffff\r\n", 400, "bad_request"),
        (CHUNKED + b"-1\r\n", 400, "bad_request"),
        (HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", 400, "bad_request"),
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
        (HEAD + b"content-length: -5\r\n\r\n", 400, "bad_request"),
        (HEAD + b"content-length: 99999999999999999999999\r\n\r\n", 400, "bad_request"),
        (HEAD + b"content-length: 9999999999\r\n\r\n", 413, "request_too_large"),
        (b"POST /v1/\xc3\xa9 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 400, "bad_request"),
        (b"POST /v1/%ff%00 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", 404, "not_found"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, 400, "bad_request"),
        (b"HELLO\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_is_wrong_is_answered_by_its_4xx(target: FaultyServer, sent: bytes, status: int, code: str) -> None:
    with connected(target) as client:
        with suppress(ConnectionError):  # it may be refused before it is all sent
            client.sendall(sent)
        answer = read_answer(client)
    assert (answer.status, code_of(answer)) == (status, code), answer


@pytest.mark.parametrize("text", ["red\0blue", "\0", "\u202e\ufeff", "\U0010ffff", "a" * 10])
def test_odd_characters_are_texts_like_any_other(target: FaultyServer, text: str) -> None:
    answer = ask(target, request(embed(text)))
    if answer.status != 200:
        assert (answer.status, json.loads(answer.body)["error"]["index"]) == (400, 0), "nothing of it is left"


def test_a_megabyte_of_headers_is_431(target: FaultyServer) -> None:
    many = b"".join(b"x-%d: a\r\n" % i for i in range(100_000))
    for headers in (b"x-long: " + b"a" * 1_000_000, many):
        with connected(target) as client:
            # In two steps: who sends on after the answer may lose it.
            client.sendall(HEAD + headers[:70_000])
            assert (answer := read_answer(client)).status == 431
            assert code_of(answer) == "headers_too_large"
        with connected(target) as client, suppress(ConnectionError):
            client.sendall(HEAD + headers)
            wait_hung_up(client)


def test_a_head_that_does_not_end_is_hung_up_on(target: FaultyServer) -> None:
    with connected(target) as never, connected(target) as slow:
        slow.sendall(HEAD)
        for client in (never, slow):
            assert wait_hung_up(client) == b""


def test_a_body_that_does_not_end_is_408_and_then_hung_up_on(target: FaultyServer) -> None:
    with connected(target) as client:
        client.sendall(request(embed("red"), length=1000))
        assert (answer := read_answer(client)).status == 408, answer
        assert wait_hung_up(client) == b""


@pytest.mark.parametrize(
    "piece", [b"10000\r\n" + b" " * 65536 + b"\r\n", b"1;" + b"x" * 60_000 + b"\r\n \r\n"], ids=["chunks", "extensions"]
)
def test_chunks_without_end_are_answered_and_then_hung_up_on(target: FaultyServer, piece: bytes) -> None:
    with connected(target) as client:
        client.sendall(CHUNKED)
        with pytest.raises(ConnectionError):
            send_without_end(client, piece)
        assert target.process.memory_info().rss < 400 << 20


def test_trailers_without_end_are_not_kept(target: FaultyServer) -> None:
    before = target.process.memory_info().rss
    with connected(target) as client:
        client.sendall(CHUNKED + b"0\r\n")
        with pytest.raises(ConnectionError):
            send_without_end(client, b"x-trailer: " + b"a" * 1000 + b"\r\n")
    assert target.process.memory_info().rss < before + (50 << 20)


def send_without_end(client: socket.socket, piece: bytes) -> None:
    """Send until hung up on; at most for a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        client.sendall(piece)


def test_a_body_longer_than_told_is_another_request_and_a_bad_one(target: FaultyServer) -> None:
    with connected(target) as client:
        client.sendall(request(embed("red")) + b"and more\r\n\r\n")
        said = wait_hung_up(client)
    assert said.count(b"HTTP/1.1 ") <= 2
    assert b"400 Bad Request" in said


def test_pipelined_requests_are_answered_in_order(target: FaultyServer) -> None:
    texts = ["red", "green", "blue", "one", "two", "three"]
    alone = [json.loads(ask(target, request(embed(text))).body)["data"][0]["embedding"] for text in texts]
    with connected(target) as client:
        client.sendall(b"".join(request(embed(text)) for text in texts))
        for row in alone:
            answer = read_answer(client)
            assert answer.status == 200
            np.testing.assert_allclose(json.loads(answer.body)["data"][0]["embedding"], row, atol=1e-3)


OFFERS = ["h2c", "websocket", "TLS/1.0, HTTP/2.0", "nothing that exists"]
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


def chunked(body: bytes, *headers: str) -> bytes:
    """Write a request in chunks of 7 bytes, with trailers that offer another protocol once more."""
    head = CHUNKED[:-2] + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n"
    chunks = [body[i : i + 7] for i in range(0, len(body), 7)]
    trailers = b"connection: upgrade\r\nupgrade: h2c\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


def offering(offer: str) -> tuple[str, ...]:
    return ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("write", [request, chunked])
@pytest.mark.parametrize("size", [1, 50, 230, 1 << 20], ids=lambda size: f"packets of {size}")
def test_offers_of_another_protocol_are_left_aside(
    target: FaultyServer, offer: str, write: Callable[..., bytes], size: int
) -> None:
    # The body has a request in it, and is whole: each of them has an answer, and nothing else has.
    body = b'{"model": "tiny", "input": "red", "x": ' + json.dumps(SMUGGLED.decode()).encode() + b"}" + b"\r\n" * 4
    once = write(body, *offering(offer))
    sent = once + request(embed("red")) + once + b"GET /livez HTTP/1.1\r\nhost: x\r\n" + head_lines(offering(offer))
    with connected(target) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(sent), size):
            client.sendall(sent[i : i + size])
        assert [read_answer(client).status for _ in range(4)] == [200, 200, 200, 200]
        client.sendall(once + SMUGGLED)
        assert [read_answer(client).status for _ in range(2)] == [200, 404]


def head_lines(headers: tuple[str, ...]) -> bytes:
    return "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n"


@pytest.mark.parametrize("n_first", [0, 1, len(SMUGGLED), 1 << 20])
def test_no_byte_of_a_body_is_read_as_a_head(target: FaultyServer, n_first: int) -> None:
    for write in (request, chunked):
        sent = write(SMUGGLED * 3, *offering("h2c"), "connection: close")
        n_head = sent.index(b"\r\n\r\n") + 4
        with connected(target) as client:
            client.sendall(sent[: n_head + n_first])
            time.sleep(0.05)  # so that the rest comes in a packet of its own
            client.sendall(sent[n_head + n_first :])
            said = wait_hung_up(client)
        assert said.count(b"HTTP/1.1 ") == 1
        assert b"not valid JSON" in said


@pytest.mark.parametrize("line", [b"CONNECT x:80 HTTP/1.1", b"CONNECT /v1/embeddings HTTP/1.1", b"CONNECT x HTTP/1.1"])
def test_what_comes_after_connect_is_not_read(target: FaultyServer, line: bytes) -> None:
    with connected(target) as client:
        client.sendall(line + b"\r\nhost: x\r\ncontent-length: 500\r\n\r\n" + SMUGGLED * 3)
        said = wait_hung_up(client)
    assert said.count(b"HTTP/1.1 ") == 1
    assert said.startswith(b"HTTP/1.1 400 ")


def test_offers_may_come_with_other_faults(target: FaultyServer) -> None:
    both = (*offering("h2c"), "transfer-encoding: chunked")
    assert ask(target, request(b"0\r\n\r\n", *both)).status == 400
    with connected(target) as client:
        client.sendall(request(embed("red"), *offering("h2c"), version="1.0"))
        assert read_answer(client).status == 200
        assert client.recv(1) == b""
    with connected(target) as client:
        client.sendall(request(b"", *offering("h2c"), "expect: 100-continue", length=len(embed("red"))))
        assert read_answer(client).status == 100
        client.sendall(embed("red"))
        assert read_answer(client).status == 200


def test_http_1_0_is_answered_and_closed(target: FaultyServer) -> None:
    with connected(target) as client:
        client.sendall(request(embed("red"), version="1.0"))
        assert read_answer(client).status == 200
        assert client.recv(1) == b""


def test_expect_100_continue_is_told_to_go_on(target: FaultyServer) -> None:
    body = embed("red")
    with connected(target) as client:
        client.sendall(request(b"", "expect: 100-continue", length=len(body)))
        assert read_answer(client).status == 100
        client.sendall(body)
        assert read_answer(client).status == 200


def test_half_closed_connections_end(target: FaultyServer) -> None:
    for sent in (b"", HEAD, request(embed("red"), length=1000), request(embed("red"))):
        with connected(target) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            wait_hung_up(client)


def test_a_thousand_idle_connections_are_in_nobodys_way(target: FaultyServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(target)) for _ in range(1000)]
            assert ask(target, request(embed("red"))).status == 200
            assert wait_hung_up(clients[0]) == wait_hung_up(clients[-1]) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_answers_that_nobody_reads_are_let_go(target: FaultyServer) -> None:
    with connected(target, n_unread=4096) as client:
        for _ in range(300):  # 16 MB of answers: more than the server's end holds
            client.sendall(request(embed(["red"] * 256)))
        port = client.getsockname()[1]

        def connections() -> list[int]:
            return [c.raddr.port for c in target.process.net_connections("tcp") if c.raddr]

        wait_until(lambda: port in connections(), "it is there")
        wait_until(lambda: port not in connections(), "it is hung up on")


def test_a_front_with_too_few_descriptors_recovers(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("few")
    with faulty_server(folder, "--model-path", tiny_path, "--workers", "1", n_descriptors=60) as server:
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(server)) for _ in range(100)]
            server.workers()[0].kill()
            wait_until(lambda: server.log.read_text().count("is gone") > 0, "the death is noticed")
            del clients
        wait_until(lambda: httpx.get(f"{server.url}/health", timeout=60).status_code == 200, "it recovers")
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red"})
        assert answer.status_code == 200


def test_texts_are_answered_while_a_huge_one_is_tokenised(
    tiny_path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags = ("--model-path", tiny_path, "--model-name", "minilm", "--workers", "1")
    with faulty_server(tmp_path_factory.mktemp("huge"), *flags) as server:
        with ThreadPoolExecutor(1) as threads:
            huge = threads.submit(server.post, "a" * 8_000_000)  # one word: as many tokens as a short text
            n_meanwhile = 0
            while not huge.done():
                assert server.post("a" * 300).status_code == 200
                n_meanwhile += 1
        assert huge.result().status_code == 200
        assert n_meanwhile > 20, "some came before it, but not that many"


def test_a_flood_of_2048_text_requests_leaves_the_front_small(
    tiny_path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags = ("--model-path", tiny_path, "--workers", "2", "--queue-bytes", str(64 << 20), "--timeout-ms", "120000")
    with faulty_server(tmp_path_factory.mktemp("flood"), *flags) as server:
        front = psutil.Process(server.process.pid)
        base = peak = front.memory_info().rss
        body = {"model": "tiny", "input": ["x" * 500] * 2048}  # one unknown word each

        def post(_: int) -> int:
            return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60).status_code

        with ThreadPoolExecutor(32) as threads:
            calls = [threads.submit(post, i) for i in range(32)]
            while not all(call.done() for call in calls):
                peak = max(peak, front.memory_info().rss)
                time.sleep(0.01)
        assert {call.result() for call in calls} <= {200, 503}
        assert 200 in {call.result() for call in calls}
        # Bytes held, as much again for what Python makes of them, and one request that is being parsed.
        assert peak - base < 256 << 20, f"{(peak - base) >> 20} MiB"
