"""The HTTP front: one way in for every dialect, one way out.

POST, any dialect ──► read body ──► parse ──► tokenise ──► Dispatcher.submit ──► write ──► answer
                          │           │           │               │
                       408, 413      400       400, 404      503, 504, 500          (api.STATUSES)

A dialect (`dialects/`) turns a body into `Work`, and answers and errors into bytes; everything between is here.
`pages.py` and `openapi.py` answer what needs no model: lists, health; descriptions.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from embellama.batch import Rows
from embellama.errors import DeadlineExceeded, EmbellamaError, ModelNotFound, Overloaded, Unavailable
from embellama.info import ModelInfo
from embellama.jobs import Job, Jobs
from embellama.results import Embeddings
from embellama_server import api, dialects
from embellama_server.config import ServerConfig
from embellama_server.exchange import Exchange
from embellama_server.telemetry.metrics import Metrics
from embellama_server.web import openapi, pages
from embellama_server.work import Endpoint, Reply, Stream, Work
from embellama_server.workers.dispatcher import Dispatcher

logger = logging.getLogger("embellama.app")

# Texts up to this many characters in all are tokenised on the event loop, in 0.15 ms at most: a thread's hand-over
# takes as long. With 1,000, two hundred requests arriving at once stalled the loop for 80 ms.
INLINE_CHARACTERS = 256

# A request with more than this has a tokenising thread apart, so that others need not wait seconds for megabytes.
HUGE_CHARACTERS = 100_000

# Texts of a streamed reply that are asked of the pool together: enough for some batches of short ones.
STREAMED_TEXTS = 64

# Such parts of one reply that are at the pool at a time, so that no worker waits for the client to read.
STREAMED_PARTS = 4

# How long a streamed reply waits before it asks again whether there is room for its next part.
FULL_S = 0.05

# Pieces of a reply that are no longer than this together are one: each costs the event loop a turn.
SMALL_BYTES = 16_384

# What a job without texts has to finish: it only needed the tokenizer.
NO_ROWS: Rows = np.empty((0, 0), np.float32)


class Model(NamedTuple):
    """A model that is served."""

    config: ServerConfig
    jobs: Jobs
    info: ModelInfo
    dispatcher: Dispatcher
    created: int  # its file's time, in seconds since 1970


class Server:
    """What the endpoints share.

    Attributes:
        config: The server's settings; each model has its own beside them.
        models: By name, the first one being what requests get that name none.
        names: Every name and alias of a model.
    """

    def __init__(self, config: ServerConfig, models: list[Model], metrics: Metrics):
        self.config = config
        self.models = {model.config.model_name: model for model in models}
        self.names = {alias: model for model in models for alias in (model.config.model_name, *model.config.aliases)}
        self.metrics = metrics
        self.tokenizing = _Tokenizing(config), _Tokenizing(config)  # requests, and huge ones
        self.reading: set[asyncio.Timeout] = set()  # of requests whose body is still coming
        self.stopping = False
        self.n_unanswered = 0  # requests that were here when the server stopped, and were not answered in time
        self.n_held_bytes = 0  # of requests and answers

    def app(self) -> ASGIApp:
        """Build the ASGI application."""
        ways = {each.path: _Way(self, each) for each in dialects.ENDPOINTS}
        endpoints = [Route(path, way, methods=["POST"]) for path, way in ways.items()]
        app = Starlette(
            routes=[*endpoints, *pages.routes(self), *openapi.routes(next(iter(self.models)))],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected},
        )
        app.router.redirect_slashes = False

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            # Past Starlette's layers, which are for everything else: they take a twentieth of a short request.
            way = ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
            await (way or app)(scope, receive, send)

        return front

    def stop_reading(self) -> None:
        """Give up on requests that are not here yet: the server stops."""
        self.stopping = True
        for patience in self.reading:
            patience.reschedule(asyncio.get_running_loop().time())

    def model(self, name: str | None) -> Model:
        """Find a model by name or alias; raises `ModelNotFound`."""
        if name is None:
            return next(iter(self.models.values()))
        try:
            return self.names[name]
        except KeyError:
            raise ModelNotFound(name, list(self.names)) from None

    def check_room(self) -> None:
        """Raise what every pool would raise now, whatever the request."""
        for i, model in enumerate(self.models.values(), 1):
            try:
                return model.dispatcher.check_room()
            except (Overloaded, Unavailable):
                if i == len(self.models):
                    raise

    def overloaded(self, reason: str) -> Overloaded:
        """Say when to come again: when the pool with the most to do has done it."""
        errors = [model.dispatcher.overloaded(reason) for model in self.models.values()]
        return max(errors, key=lambda error: error.retry_after_s)


class _Tokenizing:
    """A thread that tokenises what is too much for the event loop.

    One for all but the huge, because with the workers busy there is no core for a second, which would only take turns
    with the loop.
    """

    def __init__(self, config: ServerConfig):
        self._most, self._timeout_ms = config.queue_size, config.timeout_ms
        self._thread = ThreadPoolExecutor(1, "tokenize")
        self._n_waiting = 0
        self._n_characters = 0  # of those waiting
        self._s_a_character = 0.0  # lately

    async def run(self, ask: Callable[[], Job[Any]], n_characters: int, deadline: float) -> Job[Any]:
        """Do it in the thread.

        Raises:
            Overloaded: Too many wait already, or it would be too late.
            DeadlineExceeded: It is too late.
        """
        loop = asyncio.get_running_loop()
        wait = self._n_characters * self._s_a_character
        if self._n_waiting >= self._most:
            raise Overloaded(
                f"{self._n_waiting} requests are waiting to be tokenised, the most allowed", max(wait, 1.0)
            )
        if wait > deadline - loop.time():
            raise Overloaded(f"{self._n_characters} characters are waiting to be tokenised, {wait:.1f} s of work", wait)

        def timed() -> tuple[Job[Any], float]:
            start = time.perf_counter()
            job = ask()
            return job, time.perf_counter() - start

        self._n_waiting += 1
        self._n_characters += n_characters
        try:
            async with asyncio.timeout_at(deadline):
                job, seconds = await loop.run_in_executor(self._thread, timed)
        except TimeoutError:
            raise DeadlineExceeded(self._timeout_ms) from None
        finally:
            self._n_waiting -= 1
            self._n_characters -= n_characters
        pace = seconds / max(n_characters, 1)
        self._s_a_character = 0.9 * self._s_a_character + 0.1 * pace if self._s_a_character else pace
        return job


class _Way:
    """The way of a request, as plain ASGI."""

    def __init__(self, server: Server, endpoint: Endpoint):
        self._server = server
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _Held(self._server) as held, Exchange(self._server.metrics, self._endpoint.path, scope, send) as exchange:
            if reply := await self._reply(scope, receive, held, exchange):
                # Cancelled when uvicorn's patience at shutdown is over: the client does not read.
                with contextlib.suppress(asyncio.CancelledError):
                    await exchange.send(reply, await _pieces(reply, held))

    async def _reply(self, scope: Scope, receive: Receive, held: "_Held", exchange: Exchange) -> Reply | None:
        """Return the reply, or None when it was sent as a stream, or the client has hung up: nobody to answer."""
        deadline = asyncio.get_running_loop().time() + self._server.config.timeout_ms / 1000
        watch = None
        try:
            _check_encoding(scope)
            self._server.check_room()  # before work on what cannot be taken
            work = self._endpoint.parse(await self._read(scope, receive, deadline, held), exchange.accept)
            watch = _cancel_when_gone(receive)
            return await self._work(work, deadline, held, exchange)
        except ClientGone:
            return None
        except asyncio.CancelledError:
            if watch and watch.done():
                return None
            # Not by the client: uvicorn's patience at shutdown is over.
            self._server.n_unanswered += 1
            return self._refuse(Unavailable("the server is shutting down"))
        except Exception as error:
            if not isinstance(error, EmbellamaError):
                logger.exception("unexpected error")
            if watch and self._server.stopping and isinstance(error, Unavailable):
                self._server.n_unanswered += 1
            return self._refuse(error)
        finally:
            if watch:
                watch.cancel()

    async def _work(self, work: Work, deadline: float, held: "_Held", exchange: Exchange) -> Reply | None:
        model = self._server.model(work.model)
        exchange.model, exchange.n_characters = model.info.name, work.n_characters
        job = await self._call(model, work, deadline)
        work = work._replace(ask=_asked)  # while they wait for a worker, the texts' tokens are enough
        exchange.tokenized(job)
        held.check(4 * exchange.n_tokens + 4 * model.info.dim * len(job.tokens))
        if work.stream:
            await self._stream(model, job, work.stream, deadline, exchange)
            return None
        rows = NO_ROWS
        if job.tokens:
            with job.naming_texts():
                rows = await _submitted(model, job, deadline, exchange)
        exchange.computed()
        answer = job.finish(rows)
        exchange.n_truncated = int(np.count_nonzero(getattr(answer, "n_cut", ())))
        return work.write(answer, exchange.done(model))

    async def _stream(
        self, model: Model, job: Job[Embeddings], stream: Stream, deadline: float, exchange: Exchange
    ) -> None:
        """Compute a job in parts, a few at a time, and send each when it is there."""
        loop = asyncio.get_running_loop()
        starts = deque(range(0, len(job.tokens), STREAMED_TEXTS))
        running: deque[tuple[int, Job[Embeddings], asyncio.Future[Rows]]] = deque()
        try:
            while starts or running:
                try:
                    while starts and len(running) < STREAMED_PARTS:
                        part = job.part(starts[0], starts[0] + STREAMED_TEXTS)
                        with part.naming_texts():
                            running.append((starts[0], part, _submitted(model, part, deadline, exchange)))
                        starts.popleft()
                except Overloaded:
                    if not exchange.sending or (not running and loop.time() > deadline):
                        raise
                    if not running:  # accepted is accepted: the room will not stay full
                        await asyncio.sleep(FULL_S)
                        continue
                start, part, future = running.popleft()
                with part.naming_texts():
                    answer = job.finish(await future)
                exchange.n_truncated = int(np.count_nonzero(answer.n_cut))
                rows = stream.rows(answer, start, exchange.done(model))
                await exchange.send_part(stream.content_type, rows)
            exchange.computed()
            await exchange.send_part(stream.content_type, stream.end(exchange.done(model)), last=True)
        except Exception as error:
            if not exchange.sending:
                raise
            problem, _ = api.problem(error)
            exchange.failed(problem.status)
            line = api.dumps(self._endpoint.refuse(problem)) + b"\n"
            await exchange.send_part(stream.content_type, line, last=True)
        finally:
            for _, _, future in running:
                future.cancel()

    async def _call(self, model: Model, work: Work, deadline: float) -> Job[Any]:
        """Make the job of a request: on the event loop if it is short, else in the tokenising thread."""
        config = self._server.config
        if not work.computes and work.n_characters > config.max_request_tokens:
            raise api.TooManyTokens(
                f"the request has {work.n_characters} characters or token ids; "
                f"the limit is {config.max_request_tokens} where nothing is computed"
            )
        if work.n_characters <= INLINE_CHARACTERS:
            job = work.ask(model.jobs)
        else:
            ask = functools.partial(work.ask, model.jobs)
            lane = self._server.tokenizing[work.n_characters > HUGE_CHARACTERS]
            job = await lane.run(ask, work.n_characters, deadline)
        n_tokens = sum(map(len, job.tokens))
        if n_tokens > config.max_request_tokens:
            raise api.TooManyTokens(
                f"the request has {n_tokens} tokens in {len(job.tokens)} texts; "
                f"the limit is {config.max_request_tokens} for one request",
                "input",
            )
        return job

    def _refuse(self, error: Exception) -> Reply:
        problem, headers = api.problem(error)
        return Reply(iter([api.dumps(self._endpoint.refuse(problem))]), headers=headers, status=problem.status)

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


async def _pieces(reply: Reply, held: "_Held") -> list[bytes]:
    """Write a reply, with the event loop free between large pieces."""
    pieces = [b""]
    for piece in reply.pieces:
        if len(pieces[-1]) + len(piece) <= SMALL_BYTES:
            pieces[-1] += piece
        else:
            await asyncio.sleep(0)
            pieces.append(piece)
    held.add(sum(map(len, pieces)))
    return pieces


def _submitted(model: Model, job: Job[Any], deadline: float, exchange: Exchange) -> "asyncio.Future[Rows]":
    return model.dispatcher.submit(job.tokens, per_token=job.per_token, deadline=deadline, times=exchange.times)


def _asked(_: Jobs) -> Job[Any]:
    raise AssertionError("a request is asked once")


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
            raise self._server.overloaded(f"{total} bytes of requests are held already; {most} are the most allowed")
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


def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    kind = api.MethodNotAllowed if error.status_code == 405 else api.NotFound
    return pages.refusal(kind(f"{request.method} {request.url.path}: {error.detail}"), headers)


def _unexpected(_: Request, error: Exception) -> Response:
    return pages.refusal(error)
