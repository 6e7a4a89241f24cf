"""`LineWriter`: records of requests as lines of the request log.

RequestRecord, on the monotonic clock ──► RequestLine, in UTC, texts as hashes ──► JSON
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from embellama.records.hashes import TextHash, as_text
from embellama.records.line import VERSION, RequestLine
from embellama_server.telemetry.record import RequestRecord

# Texts of a request that are hashed, the first ones; each costs 1 µs, and 19 bytes of the line.
HASHED_TEXTS = 64

# Characters of each text, and of all texts of a request, that `--log-texts` writes.
TEXT_CHARACTERS = 1000
ALL_CHARACTERS = 8000


class Lines(NamedTuple):
    """Lines of one day.

    day: The day, in UTC, as ``2026-11-27``.
    data: The lines.
    n: How many they are.
    """

    day: str
    data: bytes
    n: int


class LineWriter:
    """Writes lines; used by one thread."""

    def __init__(self, folder: Path, *, with_texts: bool):
        """Prepare for a folder that has a key; raises `ConfigError`."""
        self._hash, self._with_texts = TextHash(folder), with_texts
        self._encoder = msgspec.json.Encoder()
        self._second, self._prefix = -1, ""

    def lines(self, records: Sequence[RequestRecord]) -> list[Lines]:
        """Return the lines of records, those of a day together."""
        past = time.time() - time.monotonic()
        made: dict[str, list[bytes]] = {}
        for record in records:
            when = self._written(past + record.times.ended)
            made.setdefault(when[:10], []).append(self._encoder.encode(self._line(record, when)) + b"\n")
        return [Lines(day, b"".join(lines), len(lines)) for day, lines in made.items()]

    def _line(self, record: RequestRecord, when: str) -> RequestLine:
        tokenization, queue, inference, encoding, total = (round(1000 * each, 3) for each in record.times.seconds)
        return RequestLine(
            v=VERSION,
            time=when,
            id=record.request_id,
            path=record.path,
            status=record.status,
            total_ms=total,
            tokenization_ms=tokenization,
            queue_ms=queue,
            inference_ms=inference,
            encoding_ms=encoding,
            error=record.error,
            key=record.key,
            client=record.client,
            n_retries=record.n_retries,
            model=record.model,
            weights_sha256=record.weights_sha256,
            prompt=record.prompt,
            prompt_hash=record.prompt_hash,
            n_texts=record.n_texts,
            n_tokens=record.n_tokens,
            n_cached_tokens=record.n_cached_tokens,
            n_truncated=record.n_truncated,
            hashes=[self._hash(text) for text in record.texts],
            texts=_beginnings(record.texts) if self._with_texts else [],
        )

    def _written(self, seconds: float) -> str:
        """Write a time as ``2026-11-27T09:30:00.125Z``; a second is looked up in the calendar once."""
        ms = int(1000 * seconds)
        if ms // 1000 != self._second:
            self._second = ms // 1000
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._second))
        return f"{self._prefix}.{ms % 1000:03}Z"


def _beginnings(texts: Sequence[str | Sequence[int]]) -> list[str]:
    """Return what may be written of texts: the beginning of each, as long as there is room."""
    found: list[str] = []
    room = ALL_CHARACTERS
    for text in texts:
        if not room:
            break
        found.append(as_text(text[:TEXT_CHARACTERS])[: min(TEXT_CHARACTERS, room)])
        room -= len(found[-1])
    return found
