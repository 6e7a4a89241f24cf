"""HTTP as bytes over a socket, for requests that no client library would send."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx

from tests.conftest import Server, wait_until


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def request(body: bytes, *headers: str, version: str = "1.1", length: int | None = None) -> bytes:
    """Write a request for embeddings; `length` is told in place of the body's own."""
    n = len(body) if length is None else length
    lines = [f"POST /v1/embeddings HTTP/{version}", "host: x", f"content-length: {n}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def embed(inputs: object, model: str = "tiny") -> bytes:
    """Write the body that asks for vectors."""
    return json.dumps({"model": model, "input": inputs}).encode()


@contextmanager
def connected(server: Server, n_unread: int = 0) -> Iterator[socket.socket]:
    """Connect; a server that says nothing for a minute fails the test. `n_unread` bytes may come unread; 0 for many."""
    url = httpx.URL(server.url)
    with socket.socket() as connection:
        if n_unread:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, n_unread)
        connection.settimeout(60)
        connection.connect((url.host, url.port))
        yield connection


def read_answer(connection: socket.socket) -> Answer:
    """Read one whole answer."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"hung up on after {head!r}"
        head += byte
    status, *lines = head.decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = b""
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(int(headers["content-length"]) - len(body))
    return Answer(int(status.split()[1]), headers, body)


def wait_hung_up(connection: socket.socket) -> bytes:
    """Wait until the server hangs up; return what it said before."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionError:
        pass
    return said


def wait_accepted(server: Server, connections: list[socket.socket]) -> None:
    """Wait until the server has read all that was sent, and begun to work on it."""
    ports = {connection.getsockname()[1] for connection in connections}
    here = httpx.URL(server.url).port

    def all_read() -> bool:
        unread = {}
        with open("/proc/net/tcp") as table:
            for line in list(table)[1:]:
                _, local, remote, _, queues, *_ = line.split()
                if int(local.split(":")[1], 16) == here:
                    unread[int(remote.split(":")[1], 16)] = int(queues.split(":")[1], 16)
        return all(unread.get(port) == 0 for port in ports)

    wait_until(all_read, "the server has read every request")
    httpx.get(f"{server.url}/health")  # comes after them in its event loop
