"""What can be wrong with an answer, and what is done about it.

status, body ── fault_of ──► Transient   the request is sent again, after a while
                         ──► Refused     the request is wrong: it is sent without the text at fault, or in halves
                         ──► Unusable    the server will not answer any other request either
"""

import email.utils
import re
import time
from collections.abc import Mapping

import msgspec

from embellama.errors import EmbellamaError, InputError, ServiceError

# Of the statuses below 500, those that a later time may change.
TRANSIENT = (408, 409, 425, 429)
# Those that are about what was sent.
REFUSED = (400, 413, 422)

# Of what a server says at most so many characters are told.
MAX_MESSAGE = 500


class Transient(ServiceError):
    """A request failed that may not fail again. `retry_after_s` is when the server wants it, if it says so."""

    def __init__(self, reason: str, status: int = 0, retry_after_s: float | None = None):
        super().__init__(reason, status, retry_after_s)
        self.reason, self.status, self.retry_after_s = reason, status, retry_after_s

    def __str__(self) -> str:
        return self.reason


class Unusable(ServiceError):
    """A server refuses whatever it is asked, or does not answer at all."""

    def __init__(self, reason: str, status: int = 0):
        super().__init__(reason, status)
        self.reason, self.status = reason, status

    def __str__(self) -> str:
        return self.reason


class Refused(InputError):
    """A server refuses a request because of its texts: of the one at `index`, or of one that it does not name."""

    def __init__(self, reason: str, index: int | None, code: str | None, status: int):
        super().__init__(reason, index, code, status)
        self.reason, self.index, self.status = reason, index, status
        self.code = code  # type: ignore[misc]  # the server's own word, not one of ours

    def __str__(self) -> str:
        return self.reason


class _Error(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None
    index: int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


def fault_of(url: str, status: int, headers: Mapping[str, str], body: bytes) -> EmbellamaError:
    """Return what is wrong, given an answer whose status is not 200."""
    error = _error_in(body)
    reason = f"{url} answers {status}: {error.message}"
    if status == 429 and headers.get("x-should-retry") == "false":
        return Unusable(reason, status)
    index = _index_of(error)
    if status in REFUSED or (status >= 500 and index is not None):
        message = error.message if index is None else error.message.replace(f"input[{index}]", "the text", 1)
        return Refused(message, index, None if error.code is None else str(error.code), status)
    if status in TRANSIENT or status >= 500:
        return Transient(reason, status, retry_after_of(headers))
    return Unusable(reason, status)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Return in how many seconds a server wants to be asked again; None if it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
            return float(value) / unit
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None


def _error_in(body: bytes) -> _Error:
    """Read OpenAI's error body; of another, its beginning is the message."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = _Error(" ".join(body.decode(errors="replace").split()))
    return msgspec.structs.replace(error, message=error.message[:MAX_MESSAGE] or "(no reason)")


def _index_of(error: _Error) -> int | None:
    """Find the position of the text at fault, which is a field of ours, and in OpenAI's words for others."""
    if error.index is not None:
        return error.index
    found = re.search(r"\binput\[(\d+)\]", f"{error.param} {error.message}")
    return int(found[1]) if found else None
