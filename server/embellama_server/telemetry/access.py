"""The access log: a line for every request, with `--access-log`.

AccessLog, a step of the app ── client, path, status, time ──┬──► a line of the log
access_fields, of a dialect's RequestRecord ── id, model, texts ┤
KeyCheck, with keys ── the key's name ─────────────────────────┘
log_refused, for a head that the app never sees ─────────────────► a line of the log
"""

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embellama_server.telemetry.record import RequestRecord

logger = logging.getLogger("embellama.access")

# Where in a request's scope `Exchange` finds the fields that it is to fill in, if the access log is on.
ACCESS_FIELDS = "embellama.access_fields"

# Where in a request's scope `Protocol` says with which status it answered in the app's place: the body was no HTTP.
REFUSED_STATUS = "embellama.refused_status"

# The order of a line's fields.
FIELDS = ("request_id", "trace_id", "client", "key", "path", "status", "model", "prompt", "texts", "tokens", "ms")

# A longer path is cut: it may have as many bytes as a request's head.
MAX_PATH = 200


class AccessLog:
    """An ASGI application around another, that logs each of its requests; status 0 is a client that hung up."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        known: dict[str, Any] = {}
        scope[ACCESS_FIELDS] = known
        try:
            await self._app(scope, receive, watched)
        finally:
            # As it was sent: decoded, it may hold line breaks.
            path = scope.get("raw_path") or scope["path"].encode()
            status = status or scope.get(REFUSED_STATUS, 0)
            _log(_seen(scope.get("client"), path, status, time.monotonic() - start) | known)


def access_fields(record: RequestRecord, trace_id: str) -> dict[str, Any]:
    """Return the fields of a dialect's request; without the trace's id if there is none."""
    fields = {
        "request_id": record.request_id,
        "path": record.path,
        "status": record.status,
        "model": record.model,
        "texts": record.n_texts,
        "tokens": record.n_tokens,
        "ms": round(1000 * (record.times.ended - record.times.came), 1),
    }
    if record.prompt:
        fields["prompt"] = record.prompt
    return fields | {"trace_id": trace_id} if trace_id else fields


def log_refused(client: tuple[str, int] | None, path: bytes, status: int, seconds: float) -> None:
    """Log a request that was refused before its head was read, with as much of the path as there is."""
    if logger.isEnabledFor(logging.INFO):
        _log(_seen(client, path, status, seconds))


def _seen(client: tuple[str, int] | None, path: bytes, status: int, seconds: float) -> dict[str, Any]:
    return {
        "client": client[0] if client else "",
        "path": path[:MAX_PATH].decode("ascii", "backslashreplace"),
        "status": status,
        "ms": round(1000 * seconds, 1),
    }


def _log(found: dict[str, Any]) -> None:
    fields = {name: found[name] for name in FIELDS if name in found}
    logger.info(" ".join(f"{name}={value}" for name, value in fields.items()), extra={"fields": fields})
