"""`RequestLine`: the format of the request log, defined once: the server writes it, `embellama stats` reads it.

DIR/requests-2026-11-27-1f0c….jsonl    the lines of one process and one day (UTC); no other process writes to it
DIR/hash.key                           what hashes of texts are made with (`hashes`)
"""

import datetime
import re
from pathlib import Path

import msgspec

# The version of the format; lines of another one are not read.
VERSION = 1

_NAME = re.compile(r"requests-(\d{4}-\d{2}-\d{2})-[0-9a-f]{16}\.jsonl")


class RequestLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request and how it was answered; after the times, what is empty or 0 is left out of the line.

    Attributes:
        v: `VERSION`.
        time: When it was answered, or given up: ``2026-11-27T09:30:00.125Z``, always of 24 characters.
        id: Its ``x-request-id``.
        path: The path it was sent to, in which names of models are left open.
        status: The status of the answer; 0 for a client that hung up.
        total_ms: Milliseconds from when it came until then; the phases below add up to them.
        tokenization_ms: Until its texts were tokens.
        queue_ms: Until a worker got the first of them, the cache asked included.
        inference_ms: Until all rows were there.
        encoding_ms: Until the answer was written.
        error: The error's code, or its type if it has none.
        key: Name of the API key.
        client: Address of the client.
        n_retries: How often the client has sent it before, as far as it tells (``x-stainless-retry-count``).
        model: Name of the model.
        weights_sha256: Hash of the content of the model's files.
        prompt: The prompt.
        prompt_hash: Hash of what it writes around texts.
        n_texts: Texts.
        n_tokens: Tokens of all texts.
        n_cached_tokens: Tokens of texts whose rows were known.
        n_truncated: Texts of which tokens were left out.
        hashes: Keyed hashes of the first texts as they were sent, 16 hexadecimal digits each.
        texts: The beginnings of those texts, with `--log-texts` only.
    """

    v: int
    time: str
    id: str
    path: str
    status: int
    total_ms: float
    tokenization_ms: float
    queue_ms: float
    inference_ms: float
    encoding_ms: float
    error: str = ""
    key: str = ""
    client: str = ""
    n_retries: int = 0
    model: str = ""
    weights_sha256: str = ""
    prompt: str = ""
    prompt_hash: str = ""
    n_texts: int = 0
    n_tokens: int = 0
    n_cached_tokens: int = 0
    n_truncated: int = 0
    hashes: list[str] = []
    texts: list[str] = []


def file_name(day: str, process: str) -> str:
    """Return the name of the file of a day, ``2026-11-27``, and a process, known by 16 hexadecimal digits."""
    return f"requests-{day}-{process}.jsonl"


def log_files(folder: Path) -> list[tuple[datetime.date, Path]]:
    """List the files of a request log with their days, oldest first; raises `OSError`."""
    found = []
    for path in folder.iterdir():
        if (named := _NAME.fullmatch(path.name)) and path.is_file():
            try:
                found.append((datetime.date.fromisoformat(named[1]), path))
            except ValueError:  # no such day: the file is not ours
                continue
    return sorted(found)
