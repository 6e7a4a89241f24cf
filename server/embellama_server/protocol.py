"""`Protocol`: uvicorn's HTTP/1.1, with limits on the size of a head and on how long a client may take.

bytes ── Protocol.data_received ──► httptools ──► the application
      ◄── transport, flow control ───────────────┘

uvicorn bounds neither how large a head may be nor how long it may take, nor how long a client may go on sending after
it was answered, nor how long it may leave its answer unread; bodies are the application's to bound. And uvicorn
sends an answer's head by itself, which wakes a client that then has to wait for the rest.

A request that offers another protocol (`Upgrade: h2c`) is answered over HTTP/1.1, which leaves the offer aside.
httptools takes what comes after its head for that protocol: it drops the body that came in the same packet, and reads
the rest of it as a request. So the head is given to a new parser once more, without the offer.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from embellama_server.dialects import error_outside
from embellama_server.edges import known_path
from embellama_server.problems import Problem
from embellama_server.reading import CONNECTION, Connection
from embellama_server.reply import dumps
from embellama_server.telemetry.access import REFUSED_STATUS, log_refused

# A client's head has a few hundred bytes; proxies add some kB, and refuse more than 8 to 32 themselves.
MAX_HEAD_BYTES = 64 * 1024

# A client that has not sent a whole head by then is hung up on. An idle connection has no head yet.
HEAD_S = 30.0

# A client that was answered before it had sent its whole body may finish that until then. Hung up on at once, it might
# not see the answer.
LINGER_S = 30.0

# A client that does not read is hung up on after so long: its answer takes memory that others wait for (queue_bytes).
# A piece of an answer has some 500 kB.
UNREAD_S = 30.0

# When the server stops, an idle client has so long to confirm the end of its TLS connection.
GOODBYE_S = 1.0


class Protocol(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.root_path = ""  # uvicorn would write it before every path; the app knows the paths of both kinds of proxy

    def connection_made(self, transport: Any) -> None:
        self._joining = _JoiningTransport(transport)
        super().connection_made(self._joining)  # type: ignore[arg-type]
        self.url = b""
        self._begun_at = self.loop.time()  # the request whose head came last
        self._n_head: int | None = 0  # bytes of a head that is still coming; None between heads
        self._answering: RequestResponseCycle | None = None
        self._refusal = b""  # to be sent once the requests before it are answered
        self._is_ending = False
        self._head_timer = _Timer(self.loop, HEAD_S, transport.close)
        self._linger_timer = _Timer(self.loop, LINGER_S, transport.close)
        self._unread_timer = _Timer(self.loop, UNREAD_S, transport.abort)
        self._head_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._linger_timer, self._unread_timer):
            timer.stop()
        # uvicorn tells the last request that was sent; the one being answered is an earlier one of a pipeline.
        if self._answering and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
            self._connection.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal:
            return
        if self._n_head is not None:
            self._n_head += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._n_head is not None and self._n_head > MAX_HEAD_BYTES and not self.transport.is_closing():
            message = f"the request's head has more than {MAX_HEAD_BYTES} bytes"
            self._refuse(b"431 Request Header Fields Too Large", message, "headers_too_large")

    def end_soon(self) -> None:
        """Have the client close the connection with the next answer, which says so: the server is about to stop.

        A connection that is closed while it is idle may be one on which a request is on its way.
        """
        self._is_ending = True
        if self.cycle and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close the connection once it is answered: the server stops."""
        super().shutdown()
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            # TLS has a client confirm the end, which one that is idle does not read.
            self.loop.call_later(GOODBYE_S, self.transport.abort)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun_at = self.loop.time()
        self._n_head = self._n_head or 0
        self._head_timer.start()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._n_head is not None:  # else it comes after a chunked body, has no bound, and nobody reads it
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # `_parse` does it again
        self._n_head = None
        self._head_timer.stop()
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._linger_timer.stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._joining.flush()
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._linger_timer.start()
        if self._refusal and not self._owes_answer():
            self._hang_up(self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer.start()

    def resume_writing(self) -> None:
        self._unread_timer.stop()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP, as uvicorn does but in the path's shape."""
        self._refuse(b"400 Bad Request", msg, "bad_request")

    def _parse(self, data: bytes) -> None:
        """Give the parser what came, heads that offer another protocol a second time; raises `HttpParserError`."""
        while data and not self.transport.is_closing():
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            if self.parser.get_method() == b"CONNECT":  # what comes after its head is never HTTP
                self.send_400_response("CONNECT is for proxies.")
                return
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self.parser.feed_data(head)

    def _head_without_offer(self) -> bytes:
        """Write the head that was read, as it was but for `upgrade`."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        if any(b"\r" in line or b"\n" in line for line in lines):
            raise httptools.HttpParserError("a line of the head is several")
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self._connection = cycle.scope[CONNECTION] = Connection(cycle)  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, app)

    def _owes_answer(self) -> bool:
        """Tell whether a request that has wholly arrived is not answered yet."""
        cycle = self._answering
        return bool(cycle and not cycle.response_complete and not cycle.more_body)

    def _refuse(self, status: bytes, message: str, code: str) -> None:
        """Answer with an error after the requests that came before, and hang up."""
        problem = Problem(int(status.split()[0]), message, "invalid_request_error", code, None, None)
        path = self.url.partition(b"?")[0]
        known = known_path(path.decode("latin-1"), self.config.root_path)
        body = dumps(error_outside(known)(problem))
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        refusal = head % (status, len(body)) + body
        unread = bool(self.pipeline) and self.pipeline[0][0].more_body  # what is refused is its body
        if unread:
            self.pipeline.popleft()
        if self._n_head is None and not unread:  # the app has it, and its access log
            if not self.cycle.response_started:
                self.cycle.scope[REFUSED_STATUS] = problem.status  # type: ignore[literal-required]
        else:
            log_refused(self.client, path, problem.status, self.loop.time() - self._begun_at)
        self._head_timer.stop()
        if self._owes_answer():
            self._refusal = refusal
            self.flow.pause_reading()
        elif self.cycle and self.cycle.more_body and self.cycle.response_started:
            self._hang_up(b"")  # it has its answer
        else:
            self._hang_up(refusal)

    def _hang_up(self, last_words: bytes) -> None:
        self.transport.write(last_words)
        self.transport.close()


class _JoiningTransport:
    """A transport that writes the head of an answer together with what comes next: with one call, in one packet."""

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        is_head = data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 100 ")
        if is_head and not self._head:
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        """Write the head that was kept, if nothing comes after it."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Timer:
    """Calls a function after a while, unless stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, function: Callable[[], None]):
        self._loop, self._seconds, self._function = loop, seconds, function
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start it, or let it run on."""
        self._handle = self._handle or self._loop.call_later(self._seconds, self._function)

    def stop(self) -> None:
        if self._handle:
            self._handle.cancel()
            self._handle = None
