"""A load generator that costs little: it shares its two cores with the server it measures.

Plain HTTP/1.1 over asyncio streams, bodies prepared before the clock starts, answers read but not decoded.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec
import numpy as np
import orjson
import uvloop


class Load(msgspec.Struct):
    """What a load measured."""

    requests: int
    texts_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int


def run(
    url: str, model: str, requests: Sequence[Sequence[str]], n_clients: int, seconds: float | None, key: str = ""
) -> Load:
    """Send `requests` (each a list of texts) from `n_clients`, each waiting for its answer: round and round for so many
    seconds, or with None each of them once; with an API key, if there is one."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(url, model, requests, n_clients, seconds, key))


async def _run(
    url: str, model: str, requests: Sequence[Sequence[str]], n_clients: int, seconds: float | None, key: str
) -> Load:
    parts = urlsplit(url)
    assert parts.hostname
    sent = [(len(texts), request(parts.netloc, model, texts, key)) for texts in requests]
    prepared = iter(sent) if seconds is None else itertools.cycle(sent)
    latencies: list[float] = []
    n_texts = failed = 0
    end = math.inf if seconds is None else time.perf_counter() + seconds

    async def client() -> None:
        nonlocal n_texts, failed
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while (start := time.perf_counter()) < end and (following := next(prepared, None)):
            n, data = following
            writer.write(data)
            status, head, _ = await read_answer(reader)
            latencies.append(time.perf_counter() - start)
            if b"\r\nconnection: close" in head:  # llama-server hangs up after 100 answers
                writer.close()
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            if status == 200:
                n_texts += n
            else:
                failed += 1
        writer.close()
        await writer.wait_closed()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(n_clients)))
    took = time.perf_counter() - start
    p50, p99, worst = (np.percentile(latencies, [50, 99, 100]) * 1000).tolist()
    return Load(len(latencies), n_texts / took, p50, p99, worst, failed)


def request(host: str, model: str, texts: Sequence[str], key: str = "") -> bytes:
    """Return a whole HTTP request for the embeddings of `texts`, in base64."""
    body = orjson.dumps({"model": model, "input": texts[0] if len(texts) == 1 else texts, "encoding_format": "base64"})
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    if key:
        head += f"authorization: Bearer {key}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Read one answer to its end and return its status, its head in lower case and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    _, found, rest = head.partition(b"content-length:")
    if found:
        return status, head, await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    body = b""
    while n := int(await reader.readline(), 16):  # chunked
        body += (await reader.readexactly(n + 2))[:-2]
    await reader.readline()
    return status, head, body
