"""The live view: how the server is, each second, as server-sent events.

RecentRequests, models ── LiveView._tick, once a second while somebody looks ──► one event, encoded once
                                                                                     │
GET /admin/events ── past: the last ten minutes ──► now ──► now ──► …  ◄─────────────┘  to every stream

A client that does not read misses events, and holds up nobody. Streams end when the server stops.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from embellama.errors import Overloaded, Unavailable
from embellama_server.problems import NotFound
from embellama_server.state import ServerState
from embellama_server.telemetry.recent import FailedRequest, RecentRequests, Second
from embellama_server.web.pages import error_response
from embellama_server.web.snapshot import ModelSnapshot, Sampler

EVENTS = "/admin/events"
EVENT_STREAM = "text/event-stream"

# Each costs the event loop a send a second. More look at dashboards than at the server itself.
MAX_STREAMS = 64

PERIOD_S = 1.0

# As proxies are told not to keep parts back (nginx), nor a copy.
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}


class Past(msgspec.Struct, frozen=True):
    """The first event: the seconds before the event that follows, oldest first; and the last errors."""

    seconds: list[Second]
    errors: list[FailedRequest]


class Now(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the server is: the seconds that are over since the event before, and the last errors if there are others."""

    seconds: list[Second]
    models: list[ModelSnapshot]
    errors: list[FailedRequest] | None = None


def routes(state: ServerState) -> list[Route]:
    """Return the route of the live view; without the page, nobody is told anything there."""
    view = LiveView(state) if state.config.page else None

    async def events(request: Request) -> Response:
        if view is None:
            return error_response(request, NotFound("there are no events without the page; see --page"))
        try:
            view.check_room()
        except (Unavailable, Overloaded) as error:
            return error_response(request, error)
        if request.method == "HEAD":
            return Response(headers=HEADERS, media_type=EVENT_STREAM)
        return _Stream(view)

    return [Route(EVENTS, events)]


class LiveView:
    """Samples the server while somebody looks, and gives each sample to all streams; used on the event loop."""

    def __init__(self, state: ServerState):
        """Have the state's requests counted, and streams ended when it stops."""
        self._state = state
        self._recent = state.metrics.recent = RecentRequests()
        self._sampler = Sampler()
        self._n_streams = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked = asyncio.Event()
        self._latest = self._past = b""
        self._n_ticks = 0
        self._n_closed = self._n_new = self._n_errors = 0
        state.at_stop.append(self._wake)

    def check_room(self) -> None:
        """Raise `Unavailable` or `Overloaded` if there can be no further stream."""
        if self._state.stopping:
            raise Unavailable("the server is shutting down")
        if self._n_streams >= MAX_STREAMS:
            raise Overloaded(f"{self._n_streams} streams of events are open; the limit is {MAX_STREAMS}", PERIOD_S)

    def __enter__(self) -> None:
        self._n_streams += 1
        if self._n_streams == 1:
            self._sampler = Sampler()
            self._recent.seconds(time.monotonic())
            self._n_closed = self._recent.n_closed
            self._tick()

    def __exit__(self, *_: object) -> None:
        self._n_streams -= 1
        if not self._n_streams and self._ticker:
            self._ticker.cancel()

    async def events(self) -> AsyncIterator[bytes]:
        """Give the past, and then what is now, until the server stops."""
        known = -1  # the tick whose event the client has
        while not self._state.stopping:
            follows, known = known == self._n_ticks - 1, self._n_ticks
            yield self._latest if follows else self._past_event() + self._latest
            if known == self._n_ticks:
                await self._ticked.wait()

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(PERIOD_S, self._tick)
        recent, now = self._recent, time.monotonic()
        seconds = recent.seconds(now)
        self._n_new = min(recent.n_closed - self._n_closed, len(seconds))
        has_errors = recent.n_errors != self._n_errors
        self._n_closed, self._n_errors = recent.n_closed, recent.n_errors
        event = Now(
            seconds=seconds[len(seconds) - self._n_new :],
            models=self._sampler.sample(self._state.models.values(), now),
            errors=list(recent.errors) if has_errors else None,
        )
        self._latest, self._past = _encoded("now", event), b""
        self._n_ticks += 1
        self._wake()

    def _past_event(self) -> bytes:
        """Encode what was before the last event, once for all who come until the next."""
        if not self._past:
            recent = self._recent
            seconds = recent.seconds(time.monotonic())
            n_later = recent.n_closed - self._n_closed + self._n_new
            self._past = _encoded("past", Past(seconds[: max(len(seconds) - n_later, 0)], list(recent.errors)))
        return self._past

    def _wake(self) -> None:
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()


class _Stream(StreamingResponse):
    """A stream of events, counted for as long as it is open."""

    def __init__(self, view: LiveView):
        super().__init__(view.events(), headers=HEADERS, media_type=EVENT_STREAM)
        self._view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._view:
            await super().__call__(scope, receive, send)


def _encoded(name: str, event: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(event))
