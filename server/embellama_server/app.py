"""The HTTP front: one way in for every request, one way out.

every request ──► KnownPaths ──► steps (access log …) ──► a dialect's path ──► EmbeddingRoute
                                                     └──► anything else ────► Starlette: pages, descriptions, 404, 405

EmbeddingRoute:
read_body ──► Dialect.parse ──► Dialect.job ──► ServedModel.submit ──► Job.finish ──► Dialect.reply ──► Exchange.send
    │               │               │                  │
408, 413, 415      400       400, 403, 404     429, 500, 503, 504                             (problems.STATUSES)
"""

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from embellama.batch import RowKind, Rows
from embellama.errors import EmbellamaError, Overloaded, Unavailable
from embellama.jobs import Job
from embellama_server.dialects import DIALECTS
from embellama_server.dialects.base import EMBEDDINGS, Dialect, ParsedRequest, check_tokens
from embellama_server.edges import KnownPaths, behind_proxies, for_origins
from embellama_server.exchange import Exchange
from embellama_server.gateway.check import KeyCheck
from embellama_server.gateway.keyring import Keyring
from embellama_server.held import HeldBytes
from embellama_server.jobs.routes import routes as job_routes
from embellama_server.jobs.service import BatchService
from embellama_server.problems import TooManyTokens, as_sent, problem_of
from embellama_server.reading import ClientGone, cancel_when_gone, check_encoding, read_body
from embellama_server.reply import Reply, dumps
from embellama_server.state import ServedModel, ServerState, SubmittedJob
from embellama_server.telemetry.access import AccessLog
from embellama_server.web import admin, bench, docs, live, ollama, openapi, page, pages, projection

logger = logging.getLogger("embellama.app")

# Texts up to this many characters in all are tokenized on the event loop, in 0.15 ms at most: a thread's hand-over
# takes as long. With 1,000, two hundred requests arriving at once stalled the loop for 80 ms.
INLINE_CHARACTERS = 256

# A request with more than this has a tokenizing thread apart, so that others need not wait seconds for megabytes.
HUGE_CHARACTERS = 100_000

# Texts of a streamed reply that are computed together: enough for some batches of short ones.
STREAMED_TEXTS = 64

# Such parts of one reply that are at the back end at a time, so that no worker waits for the client to read.
STREAMED_PARTS = 4

# How long a streamed reply waits before it asks again whether there is room for its next part.
FULL_S = 0.05

# Pieces of a reply that are no longer than this together are one: each costs the event loop a turn.
SMALL_BYTES = 16_384

# What a job without texts has to finish: it only needed the tokenizer.
NO_ROWS: Rows = np.empty((0, 0), np.float32)

# A step stands before the rest of the app: it is given an ASGI application, and returns one around it.
Step = Callable[[ASGIApp], ASGIApp]


def steps(state: ServerState, keyring: Keyring | None = None) -> list[Step]:
    """List the steps that every request goes through before anything else, the first one first.

    A step that is switched off is not in the list, so it costs nothing.
    """
    config = state.config
    found: list[Step] = []
    if config.trusted_proxies:
        found.append(functools.partial(behind_proxies, trusted=config.trusted_proxies))
    if config.access_log:
        found.append(AccessLog)
    if config.cors_origins:
        found.append(functools.partial(for_origins, origins=config.cors_origins))
    if keyring:
        found.append(functools.partial(KeyCheck, state=state, keyring=keyring))
    return found


def build_app(state: ServerState, keyring: Keyring | None = None, batches: BatchService | None = None) -> ASGIApp:
    """Build the ASGI application; with a keyring, for its keys only; with a service, for files and batches too.

    Raises:
        ConfigError: A setting of its paths is wrong.
    """
    routes = {path: EmbeddingRoute(state, dialect, path) for dialect in DIALECTS for path in dialect.paths}
    starlette = Starlette(
        routes=[
            *live.routes(state),
            *bench.routes(),
            *admin.routes(state),
            *page.routes(state),
            *pages.routes(state),
            *ollama.routes(state),
            # Names of models may have slashes.
            *(Route(path.replace("}", ":path}"), route, methods=["POST"]) for path, route in routes.items()),
            *job_routes(state, batches),
            *openapi.routes(state),
            *docs.routes(state),
            *projection.routes(state),
        ],
        exception_handlers={HTTPException: pages.http_error, Exception: pages.unexpected_error},
    )
    starlette.router.redirect_slashes = False
    fixed = {path: route for path, route in routes.items() if "{" not in path}

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        # Past Starlette's layers, which are for everything else: they take a twentieth of a short request.
        route = fixed.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (route or starlette)(scope, receive, send)

    app: ASGIApp = choose
    for step in reversed(steps(state, keyring)):
        app = step(app)
    own_paths = [route.path for route in starlette.routes if isinstance(route, Route)]
    return KnownPaths(app, state.config.root_path, own_paths)


class EmbeddingRoute:
    """A path of a dialect, as an ASGI application."""

    def __init__(self, state: ServerState, dialect: Dialect[Any, Any], path: str):
        self._state = state
        self._dialect = dialect
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._state, self._dialect.operation, self._path, scope, send)
        with HeldBytes(self._state) as held, exchange:
            if reply := await self._reply(scope, receive, held, exchange):
                # Cancelled when uvicorn's patience at shutdown is over: the client does not read.
                with contextlib.suppress(asyncio.CancelledError):
                    await exchange.send(reply, list(reply.pieces))

    async def _reply(self, scope: Scope, receive: Receive, held: HeldBytes, exchange: Exchange) -> Reply | None:
        """Return the reply, or None when it was sent as a stream, or the client has hung up: nobody to answer."""
        deadline = asyncio.get_running_loop().time() + self._state.config.timeout_ms / 1000
        watch = request = None
        try:
            check_encoding(scope)
            self._state.check_room(exchange.caller)  # before work on what cannot be taken
            body = await read_body(self._state, scope, receive, deadline, held)
            request = self._dialect.parse(body, exchange.accept)
            del body  # the texts are in the request now
            request.model = scope.get("path_params", {}).get("model", request.model)
            exchange.asked_model, exchange.formats = request.model or "", request.formats
            exchange.parsed(request.inputs)
            watch = cancel_when_gone(scope, receive)
            model = self._state.model(request.model, exchange.allowed_models)
            with model.requests:
                return await self._compute(model, request, deadline, held, exchange)
        except ClientGone:
            return None
        except asyncio.CancelledError:
            if watch and watch.done():
                return None
            # Not by the client: uvicorn's patience at shutdown is over.
            self._state.n_unanswered += 1
            stopped = Unavailable("the server is shutting down")
            if exchange.sending and request:
                await self._end_stream(stopped, request, exchange)
                return None
            return self._refuse(stopped, exchange)
        except Exception as error:
            if not isinstance(error, EmbellamaError):
                logger.exception("unexpected error")
            if watch and self._state.stopping and isinstance(error, Unavailable):
                self._state.n_unanswered += 1
            return self._refuse(error, exchange, request)
        finally:
            if watch:
                watch.cancel()

    async def _compute(
        self, model: ServedModel, request: ParsedRequest, deadline: float, held: HeldBytes, exchange: Exchange
    ) -> Reply | None:
        exchange.model, exchange.weights_sha256 = model.info.name, model.weights_sha256
        exchange.n_characters = request.n_characters
        if self._dialect.operation == EMBEDDINGS:
            exchange.dimensions = request.options.dimensions or model.info.dim
        job = await self._job(model, request, exchange.n_characters, deadline)
        request.inputs = ()  # while they wait for a worker, the texts' tokens are enough
        exchange.tokenized(job)
        n_rows = exchange.n_tokens if job.kind == RowKind.TOKEN else len(job.tokens)
        held.reserve(4 * exchange.n_tokens + 4 * model.info.dim * n_rows)
        if request.streams:
            await self._stream(model, request, job, deadline, exchange)
            return None
        rows = NO_ROWS
        if job.tokens:
            rows = await model.submit(job, deadline, exchange.times, exchange.caller).rows()
            exchange.computed()
        result = job.finish(rows)
        exchange.n_truncated = int(np.count_nonzero(getattr(result, "n_cut", ())))
        reply = self._dialect.reply(request, result, exchange.context(model))
        return reply._replace(pieces=iter(await _pieces(reply, held)))

    async def _job(self, model: ServedModel, request: ParsedRequest, n_characters: int, deadline: float) -> Job[Any]:
        """Make the job of a request: on the event loop if it is short, else in a tokenizing thread."""
        limit = self._state.config.max_request_tokens
        if not request.computes and n_characters > limit:
            raise TooManyTokens(
                f"the request has {n_characters} characters or token ids; "
                f"the limit is {limit} where nothing is computed"
            )
        if n_characters <= INLINE_CHARACTERS:
            job = self._dialect.job(request, model.jobs)
        else:
            thread = self._state.tokenizing_huge if n_characters > HUGE_CHARACTERS else self._state.tokenizing
            make_job = functools.partial(self._dialect.job, request, model.jobs)
            job = await thread.run(make_job, n_characters, deadline)
        check_tokens(job, limit)
        return job

    async def _stream(
        self, model: ServedModel, request: ParsedRequest, job: Job[Any], deadline: float, exchange: Exchange
    ) -> None:
        """Compute a job in parts, a few at a time, and send each when it is there."""
        dialect = self._dialect
        starts = deque(range(0, len(job.tokens), STREAMED_TEXTS))
        running: deque[tuple[int, SubmittedJob]] = deque()
        try:
            while starts or running:
                try:
                    while starts and len(running) < STREAMED_PARTS:
                        part = job.part(starts[0], starts[0] + STREAMED_TEXTS)
                        running.append((starts[0], model.submit(part, deadline, exchange.times, exchange.caller)))
                        starts.popleft()
                except Overloaded as error:
                    if not running:
                        await _wait_for_room(error, deadline, exchange)
                        continue
                first, submitted = running.popleft()
                try:
                    rows = await submitted.rows()
                except Overloaded as error:  # as a cache says once it knows what there is to compute
                    starts.extendleft(place for place, _ in [*reversed(running), (first, submitted)])
                    while running:
                        running.pop()[1].cancel()
                    await _wait_for_room(error, deadline, exchange)
                    continue
                result = submitted.job.finish(rows)
                exchange.n_truncated = int(np.count_nonzero(result.n_cut))
                lines = dialect.stream_rows(request, result, first, exchange.context(model))
                await exchange.send_part(dialect.stream_type, lines)
            exchange.computed()
            end = dialect.stream_end(request, exchange.context(model))
            await exchange.send_part(dialect.stream_type, end, last=True)
        except Exception as error:
            if not exchange.sending:
                raise
            await self._end_stream(error, request, exchange)
        finally:
            for _, submitted in running:
                submitted.cancel()

    async def _end_stream(self, error: Exception, request: ParsedRequest, exchange: Exchange) -> None:
        """Tell of an error in a last line, where the head of a streamed reply has been sent."""
        problem = as_sent(problem_of(error)[0], request.sent_as)
        exchange.failed(problem)
        line = dumps(self._dialect.refuse(problem)) + b"\n"
        await exchange.send_part(self._dialect.stream_type, line, last=True)

    def _refuse(self, error: Exception, exchange: Exchange, request: ParsedRequest | None = None) -> Reply:
        problem, headers = problem_of(error)
        if request:
            problem = as_sent(problem, request.sent_as)
        exchange.failed(problem)
        return Reply(iter([dumps(self._dialect.refuse(problem))]), headers=headers, status=problem.status)


async def _wait_for_room(error: Overloaded, deadline: float, exchange: Exchange) -> None:
    """Wait for a moment if a streamed reply has begun: accepted is accepted, and the room will not stay full."""
    if not exchange.sending or asyncio.get_running_loop().time() > deadline:
        raise error
    await asyncio.sleep(FULL_S)


async def _pieces(reply: Reply, held: HeldBytes) -> list[bytes]:
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
