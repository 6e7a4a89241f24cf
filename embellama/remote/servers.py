"""`Servers`: requests go to the server that has the fewest, and again to another one until they are answered.

texts ── a slot of `concurrency` ──► turnstile: whoever was told to wait holds up all; rates ──► RemoteServer ──► Answer
                 ▲                                                                                    │
                 └────────────── Transient: after a pause, or at once where another server works ◄────┘

One that refuses whatever it is asked gets nothing more. Those that work must have the same model.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import msgspec
import numpy as np
import tenacity

from embellama.batch import Rows
from embellama.errors import ConfigError
from embellama.remote.answers import Answer, Inputs, RequestBody
from embellama.remote.config import RemoteConfig
from embellama.remote.faults import Refused, Transient, Unusable
from embellama.remote.limits import FIRST_CHARACTERS_A_TOKEN, RateLimits
from embellama.remote.server import ENCODINGS, ModelEntry, RemoteServer

Result = TypeVar("Result")

# The text that every server embeds before any other: whether it can, how many numbers a vector has, and whether it is
# the model of the others.
PROBE = "The canary sang 3 songs."

# Of two servers with the same weights, in whatever format, the cosine of their vectors is above 0.99; of two models
# with as many dimensions it is near 0.
ALIKE = 0.99

# A server that cannot be reached when work begins is one that was named wrongly.
START_S = 10.0

# So often texts are sent that a server answers 500 to: it will most likely do so again.
MAX_ERRORS = 3

# The pause before a request is sent again is random, up to this at first and doubled each time. Less would hurry a
# server that has just failed, more would keep a request from one that has recovered.
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0


class _Request:
    """A request until it is answered, or given up.

    Attributes:
        inputs: What is to be computed: texts, or token ids of each.
        server: Who is to compute it before work begins; None for any.
        n_characters: Of all texts; of token ids, as many as such texts would have.
        n_tokens: Of all token ids; 0 of texts, whose tokens a server counts.
        failed_at: When it failed first; None if it did not.
    """

    def __init__(self, inputs: Inputs, server: RemoteServer | None = None, *, scaled: bool = True):
        self.inputs, self.server, self._scaled = inputs, server, scaled
        total = sum(map(len, inputs))
        self.n_tokens = total if inputs and isinstance(inputs[0], list) else 0
        self.n_characters = round(FIRST_CHARACTERS_A_TOKEN * total) if self.n_tokens else total
        self.failed_at: float | None = None

    def body(self, fields: RequestBody) -> RequestBody:
        """Return what is sent: texts with `fields`; token ids with what rows of them may be asked with."""
        if not self.n_tokens:
            return msgspec.structs.replace(fields, input=self.inputs)
        return RequestBody(fields.model, self.inputs, normalized=None if self._scaled else False)


class Servers:
    """Servers of one model; used on one event loop.

    Attributes:
        entry: What the first server tells of the model.
        embellama: Whether all servers are embellama's.
        weights: The hashes of weights that they tell; "" of those that tell none.
        dim: Numbers of a vector; None until that is known.
        probe: The vector of `PROBE`, ``(dim,) float32``.
        prompt: Identity of the prompt that they write around texts, as far as they tell it; "" for none.
    """

    def __init__(self, config: RemoteConfig, http: httpx.AsyncClient):
        """Prepare to ask the servers of a checked config."""
        self._config = config
        self._servers = [RemoteServer(url, http, config.timeout_s, config.api_key) for url in config.url]
        self._fields = RequestBody(config.model_name, [])
        self._limits = RateLimits(config.rate_limit)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._turn = asyncio.Lock()
        self._backoff = tenacity.wait_random_exponential(multiplier=FIRST_PAUSE_S, max=MAX_PAUSE_S)
        self._answered_at = 0.0
        self.entry = ModelEntry(config.model_name)
        self.embellama = False
        self.weights: set[str] = set()
        self.dim: int | None = None
        self.probe: Rows = np.zeros(0, np.float32)
        self.prompt = ""

    async def describe(self) -> None:
        """Find out which model the servers have.

        Raises:
            ConfigError: It is not the same, or none is named and there is not exactly one.
            Transient, Unusable: One does not answer.
        """
        entries = [await self._retried(_Request([], server), self._entry_of) for server in self._servers]
        self.entry = entries[0]
        self.embellama = all(entry.is_embellama for entry in entries)
        self.weights = {entry.weights_sha256 or "" for entry in entries}
        told = [(server.url, entry.weights_sha256) for server, entry in zip(self._servers, entries, strict=True)]
        if len({weights for _, weights in told if weights}) > 1:
            having = ", ".join(f"{url} {weights[:12]}…" for url, weights in told if weights)
            raise ConfigError(f"url names servers whose weights of {self.entry.id!r} have different hashes: {having}")

    async def prepare(self, fields: RequestBody) -> None:
        """Have each server embed `PROBE`, and send `fields` with whatever is asked from now on.

        Raises:
            ConfigError: One refuses that, or their vectors are not of the same model.
            Transient, Unusable: One does not answer.
        """
        self._fields = msgspec.structs.replace(fields, model=self._config.model_name or self.entry.id)
        for server in self._servers:
            answer = await self._probed(server)
            row = answer.rows[0]
            if not np.isfinite(row).all() or not row.any():
                raise ConfigError(f"{server.url} gives no usable vector for {PROBE!r}: it is not finite, or all zeros")
            if self.dim is None:
                self.dim, self.probe, self.prompt = len(row), row, answer.prompt
            elif answer.prompt != self.prompt:
                raise ConfigError(
                    f"url names servers whose prompts differ: {self._servers[0].url} writes {self.prompt or 'none'}, "
                    f"{server.url} {answer.prompt or 'none'}"
                )
            elif (cosine := cosine_of(row, self.probe)) < ALIKE:
                raise ConfigError(
                    f"url names servers of different models: for the same text, the vectors of {self._servers[0].url} "
                    f"and {server.url} have a cosine of {cosine:.3f}"
                )

    async def ask(self, inputs: Inputs, *, scaled: bool = True) -> Answer:
        """Have texts, or token ids, computed by any server.

        Args:
            inputs: Texts, for which is asked what `prepare` was told; or token ids, of which only embellama's know what
                is meant.
            scaled: Whether rows of token ids are scaled as the model says.

        Raises:
            Refused: They are refused.
            Transient: They are not answered in time, though others are.
            Unusable: Nothing is answered any more.
        """
        request = _Request(inputs, scaled=scaled)
        async with self._slots:
            try:
                return await self._retried(request, self._answer)
            except Transient as error:
                assert request.failed_at is not None
                if self._answered_at < request.failed_at:
                    await self._check_alive(error)
                raise

    async def _check_alive(self, error: Transient) -> None:
        """Raise `Unusable` if `PROBE` is not answered either: then it is not because of the texts."""
        try:
            await self._retried(_Request([PROBE]), self._answer)
        except Transient:
            raise Unusable(f"no server answers any more: {error}") from error

    async def _probed(self, server: RemoteServer) -> Answer:
        """Have a server embed `PROBE`, its vector written in a way that the server knows."""
        first: Refused | None = None
        for server.encoding in ENCODINGS:
            try:
                return await self._retried(_Request([PROBE], server), self._answer)
            except Refused as error:
                first = first or error
        raise ConfigError(f"{server.url} refuses a first text: {first}")

    async def _retried(self, request: _Request, attempt: Callable[[_Request], Awaitable[Result]]) -> Result:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Transient),
            stop=lambda state: self._gives_up(request, state),
            wait=self._pause_s,
            sleep=asyncio.sleep,
            reraise=True,
        )
        return await retrying(attempt, request)

    def _gives_up(self, request: _Request, state: tenacity.RetryCallState) -> bool:
        error, now = _error_of(state), time.monotonic()
        if request.failed_at is None:
            request.failed_at = now
        unreachable = request.server is not None and not error.status
        retry_s = min(self._config.retry_s, START_S) if unreachable else self._config.retry_s
        if error.status == 500 and state.attempt_number >= MAX_ERRORS:
            return True
        return now - request.failed_at + (error.retry_after_s or 0) >= retry_s

    def _pause_s(self, state: tenacity.RetryCallState) -> float:
        now = time.monotonic()
        if (_error_of(state).retry_after_s or 0) >= FIRST_PAUSE_S:
            return 0  # all wait, in `_free`
        if len(self._servers) > 1 and any(not server.is_failing(now) for server in self._usable()):
            return 0
        return self._backoff(state)

    async def _entry_of(self, request: _Request) -> ModelEntry:
        server = await self._free(request.server)
        return await server.entry(self._config.model_name)

    async def _answer(self, request: _Request) -> Answer:
        async with self._turn:
            await self._free(request.server)
            estimated = await self._limits.wait(request.n_characters)
            server = await self._free(request.server)  # while it waited, others may have been told to wait
            server.n_open += 1
        try:
            answer = await server.embed(request.body(self._fields), None if request.server else self.dim)
        except Unusable as error:
            if request.server is None and self._usable():
                raise Transient(str(error)) from error  # another one may answer
            raise
        finally:
            server.n_open -= 1
        self._answered_at = time.monotonic()
        # No prompt is written around token ids.
        if request.server is None and not request.n_tokens and answer.prompt != self.prompt:
            raise Unusable(
                f"{server.url} writes another prompt around texts than before: it was {self.prompt or 'none'} and is "
                f"{answer.prompt or 'none'}"
            )
        if n_tokens := answer.total_tokens or request.n_tokens:
            self._limits.counted(request.n_characters, estimated, n_tokens)
        return answer

    async def _free(self, only: RemoteServer | None) -> RemoteServer:
        """Return the server to ask, once there is one that was not told to be left alone."""
        while True:
            usable = [only] if only else self._usable()
            if not usable:
                raise Unusable("; ".join(str(server.unusable) for server in self._servers))
            now = time.monotonic()
            if ready := [server for server in usable if server.wait_until <= now]:
                return min(ready, key=lambda server: (server.is_failing(now), server.n_open))
            wait_s = min(server.wait_until for server in usable) - now
            if wait_s > self._config.retry_s:
                urls = ", ".join(server.url for server in usable)
                raise Unusable(f"{urls}: not to be asked for {wait_s:.0f} s; retry_s is {self._config.retry_s:g}")
            await asyncio.sleep(wait_s)

    def _usable(self) -> list[RemoteServer]:
        return [server for server in self._servers if not server.unusable]


def cosine_of(row: Rows, other: Rows) -> float:
    """Return the cosine of two vectors, ``(dim,)``; 0 if they do not have as many numbers."""
    if len(row) != len(other):
        return 0.0
    one, two = row.astype(np.float64), other.astype(np.float64)
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))


def _error_of(state: tenacity.RetryCallState) -> Transient:
    """Return why a request has failed."""
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, Transient)
    return error
