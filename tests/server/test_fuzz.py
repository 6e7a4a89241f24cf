"""Ten thousand bodies that no client should send, over real connections: each is refused in its dialect's words.

a dialect's body type ── msgspec.inspect ──► a good body ── one field spoilt, or the body broken ──► POST
                                                        4xx of the one shape, or 200 where it is right by chance ◄──┘

The fields are read from the types that bodies are parsed as, so new ones are tried without a word here.
"""

import functools
import json
import random
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
import pytest
from embellama_server.dialects import DIALECTS
from embellama_server.dialects.base import Dialect
from msgspec import inspect

from embellama import EmbeddingEngine, EngineConfig
from tests.conftest import Server, running_server
from tests.faults.raw import connected, read_answer, wait_hung_up

pytestmark = pytest.mark.server

N_BODIES = 10_000
SEED = 20  # of what is drawn; a failing body is printed
N_CONNECTIONS = 4
N_AT_ONCE = 20  # requests sent on a connection before the answers are read

# JSON values that are wrong in some place or other, and right in others.
VALUES = [
    *(b"null", b"true", b"false", b"0", b"-1", b"1", b"-0.0", b"1.5", b"1e2", b"1e400", b"-1e400", b"1e-400", b"30522"),
    *(b"2147483648", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616"),
    *(b"9" * 400, b"9" * 5000, b"0." + b"3" * 2000, b"[-1]", b"[[-1]]", b"[2147483648]", b"[[9223372036854775808]]"),
    *(b'""', b'" "', b'"red"', b'"\\u0000"', b'"\\n\\t"', b'"\\u2028\\ufeff\\uffff"', b'"base64"', b'"float"'),
    *('"रंग 빨강 🟥 ا\u202eحمر"'.encode(), b'"' + b"x" * 20_000 + b'"', b'"' + b"red " * 5000 + b'"', b'"END"'),
    *(b"[]", b"[[]]", b"[[[]]]", b"[null]", b"[true]", b"[1.5]", b'[""]', b'[" "]', b'["red"]', b'["red",1]', b"[1]"),
    *(b"[[1],[2.5]]", b'[[1],"red"]', b'[["red"]]', b'["float","float"]', b'["base64","int8"]', b'["no"]', b"[[1],[]]"),
    *(b"{}", b'{"text":null}', b'{"text":"red"}', b'{"text":"red","text":1}', b'[{"text":"red"},"red"]', b'{"":""}'),
    *(b'[{"text":[]}]', b'{"a":{"a":{}}}', b'{"content":[]}', b'[{"content":[{"type":"image"}]}]', b'["red",null]'),
    *(b"[" + b"0," * 3000 + b"0]", b"[" * 500 + b"]" * 500, b"[" * 20_000 + b"]" * 20_000),
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
]
NO_JSON = [
    *(b"", b" ", b"NaN", b"-Infinity", b"undefined", b"nul", b"True", b"01", b"+1", b".5", b"1.", b"0x10", b"1_000"),
    *(b"'red'", b'"red', b'"\n"', b'"\\x"', b'"\\u12"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud800 red"', b'"\0"'),
    *(
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b"\xef\xbb\xbf1",
        b"\xff\xfe1",
    ),
    *(
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[",
        b"]",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"{a:1}",
        b"{1:1}",
        b"--1",
        b"1 // one",
    ),
    *(b"/* one */ 1", b"1\0", b"\0", b"\x1b[0m", b"[" * 20_000, b'{"a":' * 5000),
]


AnyDialect = Dialect[Any, Any]
PATHS = [(dialect, path.replace("{model}", "tiny")) for dialect in DIALECTS for path in dialect.paths]


class Sent(NamedTuple):
    dialect: AnyDialect
    path: str
    body: bytes


@functools.cache
def fields_of(kind: type) -> dict[str, inspect.Field]:
    about = inspect.type_info(kind)
    assert isinstance(about, inspect.StructType)
    return {field.encode_name: field for field in about.fields}


def kinds(about: inspect.Type) -> tuple[inspect.Type, ...]:
    return about.types if isinstance(about, inspect.UnionType) else (about,)


def good(about: inspect.Type, name: str = "") -> Any:
    """Return a value of a type, as a client would send it."""
    match kinds(about)[0]:
        case inspect.StrType():
            return {"model": "tiny", "type": "text"}.get(name, "red cat")
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.BoolType():
            return False
        case inspect.IntType():
            return 1
        case inspect.ListType(item_type=item):
            return [good(item)]
        case inspect.StructType(cls=cls):
            return {name: good(field.type, name) for name, field in fields_of(cls).items() if field.required}
        case inspect.DictType():
            return {}
    raise AssertionError(f"a request has a field of {about}: say here what is good for it")


def spoilt(about: inspect.Type, value: bytes) -> Iterator[bytes]:
    """Put a value in the place of one of a type, and in every place inside it."""
    yield value
    for kind in kinds(about):
        match kind:
            case inspect.ListType(item_type=item):
                for inner in spoilt(item, value):
                    yield b"[%s]" % inner
                    yield b"[%s,%s]" % (msgspec.json.encode(good(item)), inner)
            case inspect.StructType(cls=cls):
                for name in fields_of(cls):
                    for field in spoilt_fields(cls, name, value):
                        yield written({**good(kind), name: Raw(field)})


def spoilt_fields(cls: type, name: str, value: bytes) -> Iterator[bytes]:
    return spoilt(fields_of(cls)[name].type, value)


Raw = msgspec.Raw


def written(fields: dict[str, Any]) -> bytes:
    """Write an object; `Raw` values as they are, though they be no JSON."""
    values = (bytes(each) if isinstance(each, Raw) else msgspec.json.encode(each) for each in fields.values())
    return (
        b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in zip(fields, values, strict=True)) + b"}"
    )


def bodies(dialect: AnyDialect, n: int, draw: random.Random) -> Iterator[bytes]:
    """Make `n` bodies for a path: first the systematic ones, then such with several things wrong at once."""
    fields = fields_of(dialect.body_type)
    right = good(inspect.type_info(dialect.body_type))
    systematic = [*VALUES, *NO_JSON]  # the whole body
    systematic += [
        written({**right, name: Raw(field)})
        for name, about in fields.items()
        for value in (*VALUES, *NO_JSON)
        for field in spoilt(about.type, value)
    ]
    systematic += [written({key: value for key, value in right.items() if key != name}) for name in right]
    systematic += [written(dict.fromkeys(fields))]
    draw.shuffle(systematic)
    yield from systematic[: n * 3 // 4]
    for _ in range(n - min(len(systematic), n * 3 // 4)):
        chosen = {
            name: good(about.type, name) for name, about in fields.items() if name in right or draw.random() < 0.2
        }
        for name in draw.sample(list(chosen), min(len(chosen), draw.choice((0, 1, 1, 2)))):
            chosen[name] = Raw(draw.choice([*spoilt(fields[name].type, draw.choice(VALUES))]))
        body = written(chosen)
        match draw.randrange(5):
            case 0:
                body = body[: draw.randrange(len(body))]
            case 1:
                at = draw.randrange(len(body))
                body = body[:at] + draw.randbytes(draw.randrange(1, 4)) + body[at + draw.randrange(3) :]
            case 2:  # duplicated keys: which one counts is the parser's affair
                body = body[:-1] + b"," + written({name: Raw(draw.choice(VALUES)) for name in chosen})[1:]
            case 3:
                body = body.replace(b":", draw.choice((b": ", b"::", b" :\n", b"")), draw.randrange(3))
        yield body


def fault_of(dialect: AnyDialect, status: int, content_type: str, body: bytes) -> str:
    """Say what is wrong with an answer; nothing if it is right."""
    if content_type != "application/json":
        return "content type"
    if status == 200:
        return "a number that is none" if re.search(rb"\b(NaN|Infinity)\b", body) else ""
    if status not in (400, 404, 413, 415):
        return "status"
    try:
        strict = msgspec.json.decode(body, type=dialect.error_body)
    except msgspec.DecodeError as error:
        return str(error)
    return "" if strict == json.loads(body) else "more fields than it should have"


def ask(connection: socket.socket, requests: list[Sent]) -> Iterator[str]:
    """Send requests in one go, and say what is wrong with the answers."""
    connection.sendall(
        b"".join(
            b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
            % (each.path.encode(), len(each.body), each.body)
            for each in requests
        )
    )
    with connection.makefile("rb") as answers:
        for each in requests:
            status_line = answers.readline()
            head = dict(line.rstrip().split(b": ", 1) for line in iter(answers.readline, b"\r\n") if line)
            body = answers.read(int(head.get(b"content-length", 0)))
            status = int(status_line.split()[1]) if status_line else 0
            if fault := fault_of(each.dialect, status, head.get(b"content-type", b"").decode(), body):
                yield f"POST {each.path} {each.body[:300]!r}: {status} {body[:300]!r}: {fault}"
            assert status, f"hung up on in place of an answer to {each.path} {each.body[:300]!r}"


@pytest.fixture(scope="module")
def target(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that must be as well after the tests as before."""
    good = {"model": "tiny", "input": "red cat"}
    with EmbeddingEngine(EngineConfig(model_path=tiny_path, model_name="tiny", num_workers=1)) as engine:
        expected = engine.embed("tiny", "red cat")
    log = tmp_path_factory.mktemp("fuzz") / "log"
    with running_server(log, "--model-path", tiny_path, "--workers", "1") as server:
        workers = server.workers()
        yield server
        found = httpx.post(f"{server.url}/v1/embeddings", json=good).json()["data"][0]["embedding"]
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert server.workers() == workers
        assert "unexpected error" not in log.read_text()
        assert "Traceback" not in log.read_text()


def test_ten_thousand_bad_bodies_are_refused_in_the_dialects_words(target: Server) -> None:
    draw = random.Random(SEED)
    each = -(-N_BODIES // len(PATHS))
    requests = [Sent(dialect, path, body) for dialect, path in PATHS for body in bodies(dialect, each, draw)]
    draw.shuffle(requests)  # dialects come mixed on every connection

    def send(mine: list[Sent]) -> list[str]:
        with connected(target) as connection:
            return [
                fault
                for start in range(0, len(mine), N_AT_ONCE)
                for fault in ask(connection, mine[start : start + N_AT_ONCE])
            ]

    with ThreadPoolExecutor(N_CONNECTIONS) as threads:
        shares = [requests[i::N_CONNECTIONS] for i in range(N_CONNECTIONS)]
        faults = [fault for found in threads.map(send, shares) for fault in found]
    assert not faults, f"{len(faults)} of {len(requests)}:\n" + "\n".join(faults[:20])
    assert len(requests) >= N_BODIES


# Heads that are HTTP, and what comes after them, with the status they have coming.
@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"", b"", 400),
        (b"content-length: 0", b"", 400),
        (b"content-length: 1000000000", b"", 413),
        (b"content-length: 20\r\ncontent-encoding: gzip", b"\x1f\x8b" + bytes(18), 415),
        (b"transfer-encoding: chunked", b"0\r\n\r\n", 400),
        (b"transfer-encoding: chunked", b'2\r\n{"\r\n1;a=b\r\n}\r\n0\r\n\r\n', 400),
    ],
)
def test_a_body_of_the_wrong_length_or_form_is_refused_in_the_dialects_words(
    target: Server, head: bytes, body: bytes, status: int
) -> None:
    for dialect, path in PATHS:
        with connected(target) as connection:
            connection.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n%s" % (path.encode(), head, body))
            answer = read_answer(connection)
        assert answer.status == status, path
        assert not fault_of(dialect, status, answer.headers["content-type"], answer.body), path


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"content-length: 4", b"null and more"),  # another request, it seems
        (b"content-length: -1", b""),
        (b"content-length: abc", b""),
        (b"content-length: 1e3", b""),
        (b"content-length: 0x10", b""),
        (b"content-length: 99999999999999999999999", b""),
        (b"content-length: 2\r\ncontent-length: 3", b"{}"),
        (b"content-length: 2\r\ntransfer-encoding: chunked", b"0\r\n\r\n"),
        (b"transfer-encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
        (b"transfer-encoding: chunked", b"-1\r\n{}\r\n0\r\n\r\n"),
        (b"transfer-encoding: chunked", b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        (b"transfer-encoding: chunked", b"2\r\n{}}}}}\r\n0\r\n\r\n"),
        (b"transfer-encoding: gzip, chunked, identity", b"{}"),
        (b"transfer-encoding: what", b"{}"),
        (b"no colon", b""),
        (b"a\0b: c", b""),
    ],
)
def test_what_is_no_http_is_refused_and_hung_up_on(target: Server, head: bytes, body: bytes) -> None:
    with connected(target) as connection:
        connection.sendall(b"POST /v2/embed HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n%s" % (head, body))
        said = wait_hung_up(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.endswith(b'"code":"bad_request"}}')  # of no dialect: it need not even have a path
