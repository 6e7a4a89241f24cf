"""A request of a dialect and its reply: timed, counted, sent.

came ── read, parse, tokenize ──► tokenized ── cache, waiting room ──► started ── workers ──► computed ── write ──► gone
        └──── tokenization ────┘           └────── queue ───────┘           └─ inference ─┘         └─ encoding ─┘

While it is under way, it is a few numbers; once it is over, a `RequestRecord` for all who tell of it.
"""

import itertools
import re
import secrets
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

from starlette.types import Scope, Send

from embellama.backend import ANYONE, Caller, Times
from embellama.jobs import Job
from embellama.text.prompt import Prompt, identities
from embellama_server.problems import Problem
from embellama_server.reply import Reply, ReplyContext
from embellama_server.state import ALLOWED_MODELS, ServedModel, ServerState
from embellama_server.telemetry.access import ACCESS_FIELDS, REFUSED_STATUS, access_fields
from embellama_server.telemetry.log_lines import HASHED_TEXTS
from embellama_server.telemetry.record import RequestRecord, Timeline

# An id that a client gives its request comes back to it; other requests get a new one.
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

# How OpenAI's SDK, and those that are made as it is, tell how often they have sent a request before.
RETRIES_HEADER = b"x-stainless-retry-count"
RETRIES = re.compile(rb"\d{1,4}")

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
        asked_model: The model's name as the client wrote it, once it was read.
        model: Name of the model that was asked for; empty until it is known.
        weights_sha256: Hash of that model's weights.
        prompts: Those that were written around the texts, once they are tokens.
        dimensions: Length of the vectors that were asked for; 0 if none were, or until it is known.
        formats: How the client asked for vectors to be written, once it was read.
        n_characters: Characters of all texts.
        n_truncated: Texts of which tokens were left out.
        n_texts: Texts, once they are tokens.
        n_tokens: Tokens of all texts.
        times: When texts were given to workers.
        caller: Who asks.
        allowed_models: Names of the only models that may be used; none for all.
        sending: Whether the reply has begun.
    """

    def __init__(self, state: ServerState, operation: str, path: str, scope: Scope, send: Send):
        self._metrics, self._request_log = state.metrics, state.request_log
        self._operation, self._path = operation, path
        self._scope, self._send = scope, send
        self._trace = state.tracer.begin(scope) if state.tracer else None
        self._access_fields: dict[str, Any] | None = scope.get(ACCESS_FIELDS)
        self._came_at = time.monotonic()
        self._tokenized_at = self._computed_at = 0.0
        self._status = 0  # no reply yet
        self._error = ""
        self._id = b""
        self._n_retries = 0
        self.accept = ""
        for name, value in scope["headers"]:
            if name == b"accept":
                self.accept += f",{value.decode('latin-1').lower()}"
            elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                self._id = value
            elif name == RETRIES_HEADER and RETRIES.fullmatch(value):
                self._n_retries = int(value)
        self._id = self._id or b"%s-%x" % (_PROCESS, next(_numbers))
        self.asked_model = self.model = self.weights_sha256 = ""
        self.prompts: tuple[Prompt, ...] = ()
        self.dimensions = 0
        self.formats: tuple[str, ...] = ()
        self.n_characters = self.n_texts = self.n_tokens = self.n_truncated = 0
        self.times = Times()
        self.caller: Caller = scope.get(CALLER, ANYONE)
        self.allowed_models: Collection[str] = scope.get(ALLOWED_MODELS, ())
        self.sending = False
        self._texts: Sequence[str | Sequence[int]] = ()

    def parsed(self, texts: Sequence[str | Sequence[int]]) -> None:
        """Keep the first texts, or lists of token ids, if there is a request log that wants hashes of them.

        The bytes of the body stay counted until the request is over, so these are counted, too.
        """
        if self._request_log:
            self._texts = texts[:HASHED_TEXTS]

    def tokenized(self, job: Job[Any]) -> None:
        """Note that the texts are tokens now."""
        self._tokenized_at = time.monotonic()
        self.n_texts, self.n_tokens = len(job.tokens), sum(map(len, job.tokens))
        self.prompts = job.prompts
        if not job.tokens:  # there is nothing to compute
            self._computed_at = self._tokenized_at

    def computed(self) -> None:
        """Note that the rows are here."""
        self._computed_at = time.monotonic()

    def failed(self, problem: Problem) -> None:
        """Count the request as one that had this problem, though a reply has begun with another status."""
        self._status, self._error = problem.status, problem.code or problem.type

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
        if self._trace:
            head.append((b"traceresponse", self._trace.response))
        if self._status == 200:
            tokenization, queue, inference, _, total = self._timeline().seconds
            for name, seconds in zip(HEADERS, (tokenization, queue, inference, total), strict=True):
                head.append((name, b"%.1f" % (1000 * seconds)))
            head.append((b"x-compute-characters", b"%d" % self.n_characters))
            head.append((b"x-compute-tokens", b"%d" % self.n_tokens))
            if self.prompts:
                head.append((b"x-embellama-prompt", identities(self.prompts).encode()))
            if self._computed_at:  # not yet known when a streamed reply begins
                head.append((b"x-embellama-cached-tokens", b"%d" % self.times.cached_tokens))
        await self._send({"type": "http.response.start", "status": self._status, "headers": head})

    def _timeline(self) -> Timeline:
        """Return when it came to each point of its way, the last of which is now."""
        now = time.monotonic()
        tokenized = self._tokenized_at or now
        computed = self._computed_at or now
        looked_up = self.times.looked_up or tokenized
        # If its rows are there and no worker got a text of it, it waited for none.
        started = min(self.times.started or (looked_up if self._computed_at else computed), computed)
        return Timeline(self._came_at, tokenized, min(looked_up, started), started, computed, now)

    def _record(self) -> RequestRecord:
        return RequestRecord(
            request_id=self._id.decode(),
            operation=self._operation,
            key=self.caller.name,
            client=client[0] if (client := self._scope.get("client")) else "",
            n_retries=self._n_retries,
            path=self._path,
            status=self._status or self._scope.get(REFUSED_STATUS, 0),
            error=self._error,
            asked_model=self.asked_model,
            model=self.model,
            weights_sha256=self.weights_sha256,
            prompt=", ".join(prompt.name for prompt in self.prompts),
            prompt_hash=", ".join(prompt.sha256 for prompt in self.prompts),
            dimensions=self.dimensions,
            formats=self.formats,
            n_texts=self.n_texts,
            n_tokens=self.n_tokens,
            n_truncated=self.n_truncated,
            n_cached_tokens=self.times.cached_tokens,
            texts=self._texts,
            times=self._timeline(),
        )

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        record = self._record()
        self._metrics.request(record)
        if self._trace:
            self._trace.end(record)
        if self._request_log:
            self._request_log.add(record)
        if self._access_fields is not None:
            self._access_fields |= access_fields(record, self._trace.trace_id if self._trace else "")
