"""HTTP/1.1 as uvicorn and httptools read it, with bounds on the head of a request.

bytes ── Protocol.data_received ──► httptools ──► the application

uvicorn bounds neither how large a head may be nor how long it may take; bodies are the application's to bound.
"""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Ours are a few hundred bytes; proxies add some kB, and refuse more than 8 to 32 themselves.
MAX_HEAD_BYTES = 64 * 1024

# A client that has not sent a whole head by then is hung up on. An idle connection has no head yet.
HEAD_S = 30.0


class Protocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._n_head: int | None = 0  # bytes of a head that is still coming; None between heads
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._n_head is not None:
            self._n_head += len(data)
        super().data_received(data)
        if self._n_head is not None and self._n_head > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._n_head = self._n_head or 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def on_headers_complete(self) -> None:
        self._n_head = None
        self._stop_timer()
        super().on_headers_complete()

    def _refuse(self) -> None:
        message = f"the request's head has more than {MAX_HEAD_BYTES} bytes"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "headers_too_large"}
        body = orjson.dumps({"error": error})
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()

    def _give_up(self) -> None:
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None
