"""Lines of a request log, made for tests."""

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from embellama.records.line import VERSION, RequestLine, file_name

# A day that every test asks for; all its lines are of that day.
DAY = "2025-03-20"
MIDNIGHT = datetime.datetime.fromisoformat(f"{DAY}T00:00:00+00:00")


def line(seconds: float = 0.0, total_ms: float = 1.0, status: int = 200, **fields: Any) -> RequestLine:
    """Make a line of so many seconds after midnight."""
    time = MIDNIGHT + datetime.timedelta(milliseconds=round(1000 * seconds))
    told = {"id": "1", "path": "/v1/embeddings", "model": "minilm", "n_texts": 1, "n_tokens": 5, **fields}
    phases: dict[str, Any] = dict.fromkeys(("tokenization_ms", "queue_ms", "inference_ms", "encoding_ms"), 0.0)
    written = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return RequestLine(v=VERSION, time=written, status=status, total_ms=total_ms, **phases, **told)


def write_log(folder: Path, lines: Iterable[RequestLine], day: str = DAY, process: str = "0123456789abcdef") -> Path:
    """Write the file of a day and a process, and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / file_name(day, process)
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in lines))
    return path
