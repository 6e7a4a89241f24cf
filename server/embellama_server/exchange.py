"""A request of a dialect and its reply: timed, counted, sent.

came ── read, parse, tokenize ──► tokenized ── waiting room ──► started ── workers ──► computed ── write ──► gone
        └──── tokenization ────┘           └──── queue ────┘           └─ inference ─┘         └─ encoding ─┘
"""

import itertools
import re
import secrets
import time
from collections.abc import Collection
from types import TracebackType
from typing import Any

from starlette.types import Scope, Send

from embellama.backend import ANYONE, Caller, Times
from embellama.jobs import Job
from embellama_server.reply import Reply, ReplyContext
from embellama_server.state import ALLOWED_MODELS, ServedModel
from embellama_server.telemetry.access import ACCESS_FIELDS, REFUSED_STATUS
from embellama_server.telemetry.metrics import Metrics

# An id that a client gives its request comes back to it; other requests get a new one.
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

_PROCESS = secrets.token_hex(8).encode()
_numbers = itertools.count(1)

# Where a step before the app leaves who asks, in the request's scope.
CALLER = "embellama.caller"

# Names of text-embeddings-inference for milliseconds.
HEADERS = (b"x-tokenization-time", b"x-queue-time", b"x-inference-time", b"x-total-time")


class Exchange:
    """One request of a dialect and its reply; used on the event loop.

    Attributes:
        accept: The content types that the client accepts, in lower case; those of several headers as one list.
        model: Name of the model that was asked for; empty until it is known.
        n_characters: Characters of all texts.
        n_truncated: Texts of which tokens were left out.
        n_texts: Texts, once they are tokens.
        n_tokens: Tokens of all texts.
        times: When texts were given to workers.
        caller: Who asks.
        allowed_models: Names of the only models that may be used; none for all.
        sending: Whether the reply has begun.
    """

    def __init__(self, metrics: Metrics, path: str, scope: Scope, send: Send):
        self._metrics, self._path, self._scope, self._send = metrics, path, scope, send
        self._access_fields: dict[str, Any] | None = scope.get(ACCESS_FIELDS)
        self._came_at = time.monotonic()
        self._tokenized_at = self._computed_at = 0.0
        self._status = 0  # no reply yet
        self._id = b""
        self.accept = ""
        for name, value in scope["headers"]:
            if name == b"accept":
                self.accept += f",{value.decode('latin-1').lower()}"
            elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                self._id = value
        self._id = self._id or b"%s-%x" % (_PROCESS, next(_numbers))
        self.model = ""
        self.n_characters = self.n_texts = self.n_tokens = self.n_truncated = 0
        self.times = Times()
        self.caller: Caller = scope.get(CALLER, ANYONE)
        self.allowed_models: Collection[str] = scope.get(ALLOWED_MODELS, ())
        self.sending = False

    def tokenized(self, job: Job[Any]) -> None:
        """Note that the texts are tokens now."""
        self._tokenized_at = time.monotonic()
        self.n_texts, self.n_tokens = len(job.tokens), sum(map(len, job.tokens))

    def computed(self) -> None:
        """Note that the rows are here."""
        self._computed_at = time.monotonic()

    def failed(self, status: int) -> None:
        """Count the request by this status, though a reply has begun with another."""
        self._status = status

    def context(self, model: ServedModel) -> ReplyContext:
        """Return what a dialect may tell in its reply."""
        return ReplyContext(model.info, model.config, self.n_tokens, time.monotonic() - self._came_at)

    async def send(self, reply: Reply, pieces: list[bytes]) -> None:
        """Send a whole reply."""
        self._status = reply.status
        head = [(b"content-type", reply.content_type.encode()), (b"content-length", b"%d" % sum(map(len, pieces)))]
        head += [(name.encode(), value.encode()) for name, value in reply.headers.items()]
        await self._begin(head)
        for i, piece in enumerate(pieces, 1):
            await self._send({"type": "http.response.body", "body": piece, "more_body": i < len(pieces)})

    async def send_part(self, content_type: str, part: bytes, *, last: bool = False) -> None:
        """Send a part of a reply, the head before the first."""
        if not self.sending:
            self._status = 200
            await self._begin([(b"content-type", content_type.encode())])
        await self._send({"type": "http.response.body", "body": part, "more_body": not last})

    async def _begin(self, head: list[tuple[bytes, bytes]]) -> None:
        self.sending = True
        head.append((b"x-request-id", self._id))
        if self._status == 200:
            tokenization, queue, inference, _, total = self._seconds()
            for name, seconds in zip(HEADERS, (tokenization, queue, inference, total), strict=True):
                head.append((name, b"%.1f" % (1000 * seconds)))
            head.append((b"x-compute-characters", b"%d" % self.n_characters))
            head.append((b"x-compute-tokens", b"%d" % self.n_tokens))
            if self._computed_at:  # not yet known when a streamed reply begins
                head.append((b"x-embellama-cached-tokens", b"%d" % self.times.cached_tokens))
        await self._send({"type": "http.response.start", "status": self._status, "headers": head})

    def _seconds(self) -> tuple[float, float, float, float, float]:
        """Return how long each of `metrics.PHASES` took until now."""
        now = time.monotonic()
        tokenized_at = self._tokenized_at or now
        computed_at = self._computed_at or now
        started_at = min(self.times.started or tokenized_at, computed_at)
        return (
            tokenized_at - self._came_at,
            started_at - tokenized_at,
            computed_at - started_at,
            now - computed_at,
            now - self._came_at,
        )

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        seconds = self._seconds()
        self._status = self._status or self._scope.get(REFUSED_STATUS, 0)
        self._metrics.request(self._path, self._status, self.model)
        if self._status == 200:
            self._metrics.answered(self.model, self.n_texts, self.n_tokens, self.n_truncated, seconds)
        if self._access_fields is not None:
            self._access_fields |= {
                "request_id": self._id.decode(),
                "path": self._path,
                "status": self._status,
                "model": self.model,
                "texts": self.n_texts,
                "tokens": self.n_tokens,
                "ms": round(1000 * seconds[-1], 1),
            }
