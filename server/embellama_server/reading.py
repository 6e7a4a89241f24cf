"""Read a request's body, within bounds of size and time; and notice when its client has hung up."""

import asyncio
from typing import Any

from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from embellama.errors import Unavailable
from embellama_server.held import HeldBytes
from embellama_server.problems import BodyTooLarge, BodyTooSlow, UnsupportedEncoding
from embellama_server.state import ServerState

# Where `Protocol` leaves a request's `Connection`, in its scope. Under another server there is none.
CONNECTION = "embellama.connection"


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


def check_encoding(scope: Scope) -> None:
    """Refuse a compressed body: what a few bytes of it unfold to has no bound."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedEncoding(f"content-encoding is {value.decode('latin-1')}; send the body as it is")
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise UnsupportedEncoding(
                f"transfer-encoding is {value.decode('latin-1')}; send the body as it is, or chunked"
            )


async def read_body(state: ServerState, scope: Scope, receive: Receive, deadline: float, held: HeldBytes) -> bytes:
    """Read a body; once the server stops, only what is here already.

    Raises:
        BodyTooSlow: It was not here by the deadline.
        BodyTooLarge: It has more than `max_body_bytes`.
        Overloaded: All requests together hold too many bytes.
        Unavailable: The server stops.
        ClientGone: The client hung up.
    """
    connection: Connection | None = scope.get(CONNECTION)
    if connection and connection.has_body:  # as most have: a timeout would take a twentieth of a short request
        return await _chunks(state.config.max_body_bytes, scope, receive, held)
    if state.stopping:
        deadline = 0.0  # what is here already is taken
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            state.reading.add(timeout)
            try:
                return await _chunks(state.config.max_body_bytes, scope, receive, held)
            finally:
                state.reading.discard(timeout)
    except TimeoutError:
        if state.stopping:
            raise Unavailable("the server is shutting down") from None
        raise BodyTooSlow(f"the body was not here within {state.config.timeout_ms} ms") from None


async def _chunks(limit: int, scope: Scope, receive: Receive, held: HeldBytes) -> bytes:
    n_declared = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
    chunks: list[bytes] = []
    more, n_read = True, 0
    while max(n_declared, n_read) <= limit:
        if not more:
            return b"".join(chunks)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
        n_read += len(chunks[-1])
        held.reserve(len(chunks[-1]))
    raise BodyTooLarge(f"the body has {max(n_declared, n_read)} bytes or more; the limit is {limit}")


class Connection:
    """A request's connection, as `Protocol` knows it; like a task, to who waits until the client has hung up."""

    def __init__(self, cycle: RequestResponseCycle):
        self._cycle = cycle
        self._is_lost = False
        self._request: asyncio.Task[Any] | None = None

    @property
    def has_body(self) -> bool:
        """Whether the whole body has come."""
        return not self._cycle.more_body

    def lost(self) -> None:
        """Take note that the client has hung up, and cancel the request that `cancels` named."""
        self._is_lost = True
        if self._request:
            self._request.cancel()

    def cancels(self, request: "asyncio.Task[Any]") -> None:
        """Cancel `request` when the client hangs up, or now if it has."""
        self._request = request
        if self._is_lost:
            request.cancel()

    def done(self) -> bool:
        """Tell whether the client has hung up."""
        return self._is_lost

    def cancel(self) -> None:
        """Cancel nobody any more."""
        self._request = None


def cancel_when_gone(scope: Scope, receive: Receive) -> "Connection | asyncio.Task[None]":
    """Cancel the current task when its client has hung up; what is returned is done then."""
    request = asyncio.current_task()
    assert request is not None
    connection: Connection | None = scope.get(CONNECTION)
    if connection:
        connection.cancels(request)
        return connection

    # Another server than ours, which only answers who asks: a task costs a twentieth of a short request.
    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        request.cancel()

    return asyncio.create_task(watch())
