"""Clients that check what they get: every vector against tests/reference, every status, every duration.

  soak.py ── Plan ──► ask, in a process of its own ══ HTTP ══► server
          ◄── one record of `ASKED` for each request ──┘

Times are on `time.monotonic`'s clock, which processes of one machine share.
"""

import asyncio
import base64
import functools
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import orjson
import uvloop
from numpy.typing import NDArray

from benchmarks.load import read_answer, request
from tests.conftest import Reference

# What is kept of a request. `status` 0 means that the connection ended without an answer; `wanted` is the status a
# request in good order, or one with a mistake made on purpose, should get, 0 if the client hung up itself; `cosine`
# is the worst of its rows, -1 for rows too many or too few.
ASKED = np.dtype(
    [
        ("sent", "f8"),
        ("took", "f8"),
        ("status", "i4"),
        ("wanted", "i4"),
        ("n_texts", "i4"),
        ("n_tokens", "i4"),
        ("cosine", "f4"),
        ("retry_after", "?"),
    ]
)
Asked = NDArray[Any]

# A client that is refused waits so long: one that asked again at once would measure itself.
PAUSE_S = 0.05


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What clients ask for."""

    url: str
    seconds: float  # for so long they ask; the last answers come later
    n_clients: int = 1  # each waits for its answer
    rate: float = 0.0  # requests a second, whatever the answers; then there are no such clients
    sizes: tuple[int, int] = (1, 1)  # fewest and most texts of a request
    n_tokens: tuple[int, int] = (0, 60)  # fewest and most tokens of a text
    mistakes: float = 0.0  # share of requests with a mistake in them, or whose client hangs up
    seed: int = 0


def ask(plan: Plan) -> Asked:
    """Ask as planned; return a record for each request, ``(n_requests,) ASKED``, in the order of the answers."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        records = runner.run(_Clients(plan).ask())
    return np.array(records, ASKED)


def hang_up(plan: Plan) -> float:
    """Send one request from each of `n_clients`, hang up on all after `seconds`, and return when that was."""

    async def run() -> float:
        clients = _Clients(plan)
        streams = [await clients.connect() for _ in range(plan.n_clients)]
        for _, writer in streams:
            writer.write(clients.request(clients.choose()))
        await asyncio.sleep(plan.seconds)
        for _, writer in streams:
            writer.transport.abort()
        return time.monotonic()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


class _Clients:
    def __init__(self, plan: Plan):
        self._plan = plan
        address = urlsplit(plan.url)
        self._host, self._port, self._netloc = address.hostname, address.port, address.netloc
        self._reference = _reference()
        self._n_tokens = np.array([len(ids) for ids in self._reference.ids])
        fewest, most = plan.n_tokens
        self._pool = np.flatnonzero((self._n_tokens >= fewest) & (self._n_tokens <= most))
        self._random = np.random.default_rng(plan.seed)
        self._records: list[tuple[Any, ...]] = []

    async def ask(self) -> list[tuple[Any, ...]]:
        self._end = time.monotonic() + self._plan.seconds
        if self._plan.rate:
            await self._flood()
        else:
            await asyncio.gather(*(self._client() for _ in range(self._plan.n_clients)))
        return self._records

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # Room for a whole answer of 2048 texts; at the default, the reader pauses and resumes hundreds of times.
        return await asyncio.open_connection(self._host, self._port, limit=1 << 24)

    def choose(self) -> NDArray[np.intp]:
        """Pick texts, as places in the reference."""
        fewest, most = self._plan.sizes
        return self._random.choice(self._pool, self._random.integers(fewest, most + 1))

    def request(self, picked: NDArray[np.intp]) -> bytes:
        return request(self._netloc, "minilm", [self._reference.texts[i] for i in picked])

    async def _client(self) -> None:
        """Ask until the time is over or nobody listens any more."""
        streams = None
        while time.monotonic() < self._end:
            try:
                streams = streams or await self.connect()
            except OSError:
                return
            if self._random.random() < self._plan.mistakes:
                status = await self._ask_wrongly(*streams)
            else:
                status = await self._ask(*streams)
            if status == 503:
                await asyncio.sleep(PAUSE_S)
            if status in (0, 413):
                streams[1].transport.abort()
                streams = None
        if streams:
            streams[1].close()

    async def _flood(self) -> None:
        """Send requests at a steady mean rate, at random moments, each over a connection that is free."""
        free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        asking: set[asyncio.Task[None]] = set()

        async def ask() -> None:
            streams = free.pop() if free else await self.connect()
            if await self._ask(*streams):
                free.append(streams)

        at = time.monotonic()
        while at < self._end:
            await asyncio.sleep(at - time.monotonic())
            task = asyncio.create_task(ask())
            asking.add(task)
            task.add_done_callback(asking.discard)
            at += self._random.exponential(1 / self._plan.rate)
        await asyncio.gather(*asking)
        for _, writer in free:
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        picked = self.choose()
        return await self._send(reader, writer, self.request(picked), 200, picked)

    async def _ask_wrongly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        good = self.request(self.choose())
        head, _, body = good.partition(b"\r\n\r\n")
        mistakes: list[tuple[int, bytes]] = [
            (0, good),
            (400, good[:-1] + b"!"),
            (400, good.replace(b'"base64"', b'"base65"', 1)),
            (404, good.replace(b'"minilm"', b'"maxilm"', 1)),
            (404, good.replace(b"/v1/embeddings", b"/v1/embeddingz", 1)),
            (413, head.rpartition(b" ")[0] + b" 1000000000\r\n\r\n" + body),
        ]
        wanted, data = mistakes[self._random.integers(len(mistakes))]
        if wanted:
            return await self._send(reader, writer, data, wanted)
        sent = time.monotonic()
        writer.write(data)
        await asyncio.sleep(self._random.uniform(0, 0.3))
        self._records.append((sent, time.monotonic() - sent, 0, 0, 0, 0, 1.0, False))
        return 0

    async def _send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        data: bytes,
        wanted: int,
        picked: NDArray[np.intp] | None = None,
    ) -> int:
        """Send a request, read its answer, check it and keep its record; return its status."""
        sent = time.monotonic()
        status, head, body = 0, b"", b""
        try:
            writer.write(data)
            status, head, body = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            pass
        took = time.monotonic() - sent
        n_texts = n_tokens = 0
        cosine = 1.0
        if status == 200 and picked is not None:
            cosine = self._worst_cosine(body, picked)
            n_texts, n_tokens = len(picked), int(self._n_tokens[picked].sum())
        self._records.append((sent, took, status, wanted, n_texts, n_tokens, cosine, b"\r\nretry-after:" in head))
        return status

    def _worst_cosine(self, body: bytes, picked: NDArray[np.intp]) -> float:
        data = orjson.loads(body)["data"]
        if [item["index"] for item in data] != list(range(len(picked))):
            return -1.0
        # 384 floats take a whole number of base64's units of 3 bytes, so that no row ends with "=".
        rows = np.frombuffer(base64.b64decode("".join(item["embedding"] for item in data)), "<f4")
        known = self._reference.vectors[picked]
        return float(np.sum(rows.reshape(known.shape) * known, axis=1).min())


@functools.cache
def _reference() -> Reference:
    return Reference()
