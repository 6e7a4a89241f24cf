"""`RemoteServer`: one server, which is sent requests, and whether it is worth asking now.

RequestBody ──► POST /embeddings ──► Answer, or what was wrong (`faults`)
                GET /models ──────► ModelEntry: what the server tells of its model
"""

import asyncio
import logging
import math
import time

import httpx
import msgspec

from embellama.cache.breaker import Breaker
from embellama.errors import ConfigError
from embellama.remote.answers import RAW, SHAPE_HEADER, Answer, RequestBody, rows_of, vectors_of
from embellama.remote.faults import Refused, Transient, Unusable, fault_of

logger = logging.getLogger("embellama.remote")

# An answer with more bytes is not read to its end: 2048 vectors of 4096 numbers, written as text, have 170 MB.
MAX_ANSWER_BYTES = 256 * 1024 * 1024

# One is told of a server that fails once in so many seconds.
SAY_S = 30.0

# Where embellama's servers tell the prompt that they wrote around texts.
PROMPT_HEADER = "x-embellama-prompt"

# How vectors are written: in base64, or as lists of numbers.
ENCODINGS = ("base64", None)


class ModelEntry(msgspec.Struct):
    """What a server tells of a model; OpenAI's words, and of ours what says which vectors it gives."""

    id: str
    owned_by: str = ""
    aliases: list[str] = []
    weights_sha256: str | None = None
    pooling: str | None = None
    normalization: str | None = None
    max_input_tokens: int | None = None

    @property
    def is_embellama(self) -> bool:
        """Whether embellama serves it, whose fields for texts and vectors are ours."""
        return self.owned_by == "embellama"


class _ModelList(msgspec.Struct):
    data: list[ModelEntry]


class RemoteServer:
    """One server; used on one event loop.

    Attributes:
        url: What paths are added to.
        n_open: Requests it has not answered yet.
        wait_until: Until when it wants to be left alone, on the clock of `time.monotonic`.
        unusable: Why it is never asked again; None if it may be.
        encoding: How it is asked to write vectors.
    """

    def __init__(self, url: str, http: httpx.AsyncClient, timeout_s: float, api_key: str):
        self._http, self._timeout_s, self._api_key = http, timeout_s, api_key
        self._breaker = Breaker(math.inf)
        self._said_at = -math.inf
        self.url = url
        self.n_open = 0
        self.wait_until = 0.0
        self.unusable: Unusable | None = None
        self.encoding: str | None = ENCODINGS[0]

    def is_failing(self, now: float) -> bool:
        """Whether it failed lately, and others are to be asked before it; now and then one request tries it again."""
        return not self._breaker.allows(now) or (self._breaker.is_open and self.n_open > 0)

    async def embed(self, body: RequestBody, dim: int | None) -> Answer:
        """Have texts computed.

        Args:
            body: The request; its encoding is the server's. Of token ids, the answer is `RAW`.
            dim: How many numbers vectors must have; None if that is not known yet.

        Raises:
            Transient, Refused, Unusable: As their classes say.
        """
        raw = dim is not None and isinstance(body.input[0], list)
        content = msgspec.json.encode(msgspec.structs.replace(body, encoding_format=None if raw else self.encoding))
        try:
            headers, got = await self._exchange("POST", "/embeddings", content, RAW if raw else "")
            answer = self._read(got, len(body.input), dim, headers.get(SHAPE_HEADER, "") if raw else None)
            answer = answer._replace(prompt=headers.get(PROMPT_HEADER, ""))
        except Transient as error:
            self._failed(error)
            raise
        except Unusable as error:
            self.unusable = error
            raise
        self._breaker.answered(0, time.monotonic())
        return answer

    async def entry(self, model_name: str) -> ModelEntry:
        """Ask what the server tells of a model; of one that it does not list, that is its name.

        Args:
            model_name: The model; "" for the only one.

        Raises:
            ConfigError: No model is named, and the server does not list exactly one.
            Transient, Unusable: It does not answer as it should.
        """
        try:
            _, read = await self._exchange("GET", "/models")
            listed = msgspec.json.decode(read, type=_ModelList).data
        except (Unusable, Refused) as error:
            if error.status in (401, 403):
                raise
            listed = []  # many servers have no such list
        except (msgspec.DecodeError, UnicodeDecodeError):
            listed = []
        if not model_name:
            if len(listed) != 1:
                names = ", ".join(entry.id for entry in listed) or "none"
                raise ConfigError(f"model_name is missing: {self.url} lists {names}")
            return listed[0]
        known = (entry for entry in listed if model_name in (entry.id, *entry.aliases))
        return next(known, ModelEntry(model_name))

    def _failed(self, error: Transient) -> None:
        now = time.monotonic()
        self._breaker.failed(now)
        if now >= self._said_at + SAY_S:
            self._said_at = now
            later = f", in {error.retry_after_s:g} s as it wants" if error.retry_after_s else ""
            logger.warning("%s; it is asked again%s", error, later)

    def _read(self, content: bytes, n_texts: int, dim: int | None, shape: str | None) -> Answer:
        try:
            if shape is None or dim is None:
                return vectors_of(content, n_texts, dim)
            return rows_of(content, shape, n_texts, dim)
        except Transient as error:
            raise Transient(f"{self.url}: {error}") from error

    async def _exchange(
        self, method: str, path: str, content: bytes | None = None, accept: str = ""
    ) -> tuple[httpx.Headers, bytes]:
        """Send a request and return the headers and the body of its answer, if that is good."""
        headers = {"accept": accept} if accept else None
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                body = await self._body(response)
        except TimeoutError:
            raise Transient(f"{self.url}: no answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise Transient(f"{self.url}: {str(error) or type(error).__name__}") from error
        if response.status_code == 200:
            return response.headers, body
        if self._api_key:  # some servers say which key they do not know
            body = body.replace(self._api_key.encode(), b"(the key)")
        fault = fault_of(self.url, response.status_code, response.headers, body)
        if isinstance(fault, Transient) and fault.retry_after_s is not None:
            self.wait_until = max(self.wait_until, time.monotonic() + fault.retry_after_s)
        raise fault

    async def _body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise Transient(f"{self.url}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)
