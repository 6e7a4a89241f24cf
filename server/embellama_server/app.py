"""The HTTP front: one way in, one way out.

POST /v1/embeddings ──► read body ──► parse ──► tokenise ──► Dispatcher.submit ──► cut, encode ──► answer
                           │            │          │               │
                        408, 413     400, 404     400        503, 504, 500        (api.STATUSES)

GET /v1/models   what is served
GET /health      503 until every worker is ready; later, 200 while any is
"""

import asyncio
import contextlib
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from embellama.calls import Call, Calls, Embeddings
from embellama.errors import DeadlineExceeded, EmbellamaError, ModelNotFound, Unavailable
from embellama_server import api
from embellama_server.config import ServerConfig
from embellama_server.dispatcher import Dispatcher

logger = logging.getLogger("embellama.app")

# Texts up to this many characters in all are tokenised on the event loop, in 0.15 ms at most: a thread's hand-over
# takes as long. With 1,000, two hundred requests arriving at once stalled the loop for 80 ms.
INLINE_CHARACTERS = 256

JSON = (b"content-type", b"application/json")


class Server:
    """What the routes share."""

    def __init__(self, config: ServerConfig, calls: Calls, dispatcher: Dispatcher, dim: int, created: int):
        self.config = config
        self.calls = calls
        self.dispatcher = dispatcher
        self.dim = dim
        self.created = created
        # One thread: with the workers busy there is no core for a second, which would only take turns with the loop.
        self.tokenizing = ThreadPoolExecutor(1, "tokenize")
        self.n_tokenizing = 0  # requests at that thread, waiting or not
        self.reading: set[asyncio.Timeout] = set()  # of requests whose body is still coming
        self.stopping = False
        self.n_unanswered = 0  # requests that were here when the server stopped, and were not answered in time
        self.n_held_bytes = 0  # of requests and answers

    def app(self) -> Starlette:
        """Build the ASGI application."""
        app = Starlette(
            routes=[
                Route("/v1/embeddings", _Embeddings(self), methods=["POST"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected},
        )
        app.router.redirect_slashes = False
        return app

    def stop_reading(self) -> None:
        """Give up on requests that are not here yet: the server stops."""
        self.stopping = True
        for patience in self.reading:
            patience.reschedule(asyncio.get_running_loop().time())

    async def models(self, _: Request) -> Response:
        model = {"id": self.config.model_name, "object": "model", "created": self.created, "owned_by": "embellama"}
        return _json({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        pool = self.dispatcher
        body: dict[str, Any] = {"status": pool.status, "workers": {"ready": pool.n_ready, "total": pool.n_workers}}
        if pool.trouble:
            body["reason"] = pool.trouble
        return _json(body, 200 if pool.status in ("ok", "degraded") else 503)


class _Embeddings:
    """``POST /v1/embeddings``, as plain ASGI: the one hot path."""

    def __init__(self, server: Server):
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _Held(self._server) as held:
            response = await self._response(scope, receive, held)
            if response:
                held.add(sum(map(len, response[2])))
                # Cancelled when uvicorn's patience at shutdown is over: the client does not read.
                with contextlib.suppress(asyncio.CancelledError):
                    await _respond(send, *response)

    async def _response(
        self, scope: Scope, receive: Receive, held: "_Held"
    ) -> tuple[int, dict[str, str], list[bytes]] | None:
        """Return status, headers and body in pieces, or None when the client has hung up: nobody to answer."""
        deadline = asyncio.get_running_loop().time() + self._server.config.timeout_ms / 1000
        watch = None
        try:
            _check_encoding(scope)
            self._server.dispatcher.check_room()  # before work on what cannot be taken
            request = api.parse(await self._read(scope, receive, deadline, held))
            watch = _cancel_when_gone(receive)
            return 200, {}, await self._answer(request, deadline, held)
        except ClientGone:
            return None
        except asyncio.CancelledError:
            if watch and watch.done():
                return None
            # Not by the client: uvicorn's patience at shutdown is over.
            self._server.n_unanswered += 1
            return api.error_response(Unavailable("the server is shutting down"))
        except Exception as error:
            if not isinstance(error, EmbellamaError):
                logger.exception("unexpected error")
            if watch and self._server.stopping and isinstance(error, Unavailable):
                self._server.n_unanswered += 1
            return api.error_response(error)
        finally:
            if watch:
                watch.cancel()

    async def _answer(self, request: api.EmbeddingsRequest, deadline: float, held: "_Held") -> list[bytes]:
        server = self._server
        if request.model != server.config.model_name:
            raise ModelNotFound(request.model, [server.config.model_name])
        call = await self._call(request, deadline)
        request.input = ""  # while it waits for a worker, its tokens are enough
        n_tokens = sum(map(len, call.tokens))
        held.check(4 * n_tokens + 4 * server.dim * len(call.tokens))
        vectors = call.finish(await server.dispatcher.submit(call, deadline)).vectors
        pieces = []
        for piece in api.encode(vectors, request.encoding_format, request.model, n_tokens):
            pieces.append(piece)
            if len(vectors) > api.ROWS_A_PIECE:
                await asyncio.sleep(0)
        return pieces

    async def _call(self, request: api.EmbeddingsRequest, deadline: float) -> Call[Embeddings]:
        """Make the call of a request: on the event loop if it is short, else in the tokenising thread."""
        server = self._server
        items: list[Any] = api.items(request.input)
        encode: Any = server.calls.encode if isinstance(items[0], str) else server.calls.encode_ids
        work = functools.partial(encode, items, dimensions=request.dimensions)
        if sum(map(len, items)) <= INLINE_CHARACTERS:
            return work()  # type: ignore[no-any-return]
        if server.n_tokenizing >= server.config.queue_size:
            reason = f"{server.n_tokenizing} requests are waiting to be tokenised, the most allowed"
            raise server.dispatcher.overloaded(reason)
        server.n_tokenizing += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.get_running_loop().run_in_executor(server.tokenizing, work)
        except TimeoutError:
            raise DeadlineExceeded(server.config.timeout_ms) from None
        finally:
            server.n_tokenizing -= 1

    async def _read(self, scope: Scope, receive: Receive, deadline: float, held: "_Held") -> bytes:
        server = self._server
        if server.stopping:
            deadline = 0.0  # what is here already is taken
        try:
            async with asyncio.timeout_at(deadline) as patience:
                server.reading.add(patience)
                try:
                    return await self._body(scope, receive, held)
                finally:
                    server.reading.discard(patience)
        except TimeoutError:
            if server.stopping:
                raise Unavailable("the server is shutting down") from None
            raise api.BodyTooSlow(f"the body was not here within {server.config.timeout_ms} ms") from None

    async def _body(self, scope: Scope, receive: Receive, held: "_Held") -> bytes:
        limit = self._server.config.max_body_bytes
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
            held.check(len(chunks[-1]))
        raise api.BodyTooLarge(f"the body has {max(n_declared, n_read)} bytes or more; the limit is {limit}")


class _Held:
    """The bytes one request holds: its body, its tokens, its rows, its answer."""

    def __init__(self, server: Server):
        self._server = server
        self._n_bytes = 0

    def add(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        self._server.n_held_bytes += n_bytes

    def check(self, n_bytes: int) -> None:
        """Add bytes, or raise `Overloaded` if that is more than may be held at once; a lone request may hold any."""
        total, most = self._server.n_held_bytes, self._server.config.queue_bytes
        if total > self._n_bytes and total + n_bytes > most:
            reason = f"{total} bytes of requests are held already; {most} are the most allowed"
            raise self._server.dispatcher.overloaded(reason)
        self.add(n_bytes)

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.add(-self._n_bytes)


def _check_encoding(scope: Scope) -> None:
    """Refuse a compressed body: what a few bytes of it unfold to has no bound."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise api.UnsupportedEncoding(f"content-encoding is {value.decode('latin-1')}; send the body as it is")


class ClientGone(Exception):
    """The client hung up: nobody to answer."""


def _cancel_when_gone(receive: Receive) -> "asyncio.Task[None]":
    """Cancel the current task when its client has hung up; the returned task is done then."""
    request = asyncio.current_task()
    assert request is not None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        request.cancel()

    return asyncio.create_task(watch())


async def _respond(send: Send, status: int, headers: dict[str, str], pieces: list[bytes]) -> None:
    head = [JSON, (b"content-length", str(sum(map(len, pieces))).encode())]
    head += [(name.encode(), value.encode()) for name, value in headers.items()]
    start: Message = {"type": "http.response.start", "status": status, "headers": head}
    await send(start)
    for i, piece in enumerate(pieces, 1):
        await send({"type": "http.response.body", "body": piece, "more_body": i < len(pieces)})


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses (an unknown path, a wrong method) in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    kind = api.MethodNotAllowed if error.status_code == 405 else api.NotFound
    status, headers, body = api.error_response(kind(f"{request.method} {request.url.path}: {error.detail}"))
    return Response(b"".join(body), status, {**headers, **(error.headers or {})}, "application/json")


def _unexpected(_: Request, error: Exception) -> Response:
    status, headers, body = api.error_response(error)
    return Response(b"".join(body), status, headers, "application/json")
