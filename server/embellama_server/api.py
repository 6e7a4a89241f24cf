"""What goes over the wire: OpenAI's embeddings contract, its answers and its errors.

bytes ── parse ──► EmbeddingsRequest ── … ──► rows ── encode ──► bytes
                                   any error ── error_body ──► bytes, status, headers
"""

import base64
import math
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from embellama import errors
from embellama.errors import EmbellamaError, InputError

MAX_INPUTS = 2048  # OpenAI's limit


class EmbeddingsRequest(msgspec.Struct):
    """Body of ``POST /v1/embeddings``; fields it does not know are ignored, as OpenAI does."""

    model: str
    # A text, texts, token ids, or lists of token ids: msgspec cannot tell lists apart, `items` does.
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None  # None is float, as OpenAI's null
    dimensions: int | None = None
    user: str | None = None


class BadRequest(InputError):
    """The request itself is wrong. `param` is the field at fault."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class BodyTooLarge(BadRequest):
    """The body has more bytes than the server takes."""


class BodyTooSlow(BadRequest):
    """The body was not here in time."""


class UnsupportedEncoding(BadRequest):
    """The body is compressed."""


class NotFound(BadRequest):
    """There is nothing at this path."""


class MethodNotAllowed(BadRequest):
    """The path does not answer this method."""


# The library knows no HTTP: this is where its errors get their status, OpenAI's `type` and `code`. The most
# particular class wins.
STATUSES: dict[type[Exception], tuple[int, str, str | None]] = {
    errors.InputError: (400, "invalid_request_error", None),
    errors.TextTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    NotFound: (404, "invalid_request_error", "not_found"),
    MethodNotAllowed: (405, "invalid_request_error", "method_not_allowed"),
    BodyTooSlow: (408, "invalid_request_error", "request_timeout"),
    BodyTooLarge: (413, "invalid_request_error", "request_too_large"),
    UnsupportedEncoding: (415, "invalid_request_error", "unsupported_encoding"),
    errors.ModelError: (500, "server_error", "model_error"),
    errors.ServiceError: (503, "server_error", "unavailable"),
    errors.Overloaded: (503, "server_error", "overloaded"),
    errors.DeadlineExceeded: (504, "server_error", "timeout"),
    Exception: (500, "server_error", "internal_error"),
}

_decoder = msgspec.json.Decoder(EmbeddingsRequest)


def parse(body: bytes) -> EmbeddingsRequest:
    """Decode and check a request body.

    Raises:
        BadRequest: It is not JSON, or a field is missing or of the wrong type; `param` names the field.
    """
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$.")
        param = where.rstrip("`").partition("[")[0] or _field_in(reason)
        allowed = "; it must be 'float' or 'base64'" if param == "encoding_format" else ""
        raise BadRequest(f"{param}: {reason}{allowed}" if where else reason, param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if request.input == "" or request.input == []:
        raise BadRequest("input is empty; it must be a text, token ids, or a list of either", "input")
    return request


def items(value: str | list[Any]) -> list[str] | list[list[int]]:
    """Return what `input` holds as a list: of texts, or of lists of token ids.

    Raises:
        BadRequest: It mixes kinds, or holds more than `MAX_INPUTS`.
    """
    if isinstance(value, str):
        return [value]
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise BadRequest("input mixes texts and token ids; it must be all of one kind", "input")
    if kinds == {int}:
        return [value]
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"input has {len(value)} items; the limit is {MAX_INPUTS}", "input")
    return value


def encode(rows: NDArray[Any], encoding_format: str | None, model: str, n_tokens: int) -> Iterator[bytes]:
    """Write the answer, in pieces small enough for an event loop: each takes a few milliseconds at most.

    base64 is of the row's little-endian float32, as OpenAI's.
    """
    yield b'{"object":"list","data":['
    for start in range(0, len(rows), ROWS_A_PIECE):
        items = [
            {"object": "embedding", "index": start + i, "embedding": row}
            for i, row in enumerate(_encoded(rows[start : start + ROWS_A_PIECE], encoding_format))
        ]
        yield (b"," if start else b"") + orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    yield b'],"model":%s,"usage":%s}' % (orjson.dumps(model), orjson.dumps(usage))


# 64 rows of 1024 floats take orjson about 2 ms.
ROWS_A_PIECE = 64


def _encoded(rows: NDArray[Any], encoding_format: str | None) -> list[Any]:
    if encoding_format == "base64":
        return [base64.b64encode(row).decode() for row in np.ascontiguousarray(rows, "<f4")]
    return list(np.ascontiguousarray(rows))


def error_response(error: Exception) -> tuple[int, dict[str, str], list[bytes]]:
    """Turn an error into status, headers and OpenAI's error body; what is not ours tells no details."""
    status, type_, code = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    index = getattr(error, "index", None)
    param = getattr(error, "option", None) or getattr(error, "param", None)
    if isinstance(error, errors.ModelNotFound):
        param = "model"
    body: dict[str, Any] = {
        "message": _short(str(error)) if isinstance(error, EmbellamaError) else "internal error",
        "type": type_,
        "param": "input" if index is not None else param,
        "code": code,
    }
    if index is not None:
        body["index"] = index
    # OpenAI's SDK obeys it, up to a minute.
    headers = {"retry-after": str(math.ceil(getattr(error, "retry_after_s", 1.0)))} if status == 503 else {}
    return status, headers, [orjson.dumps({"error": body})]


def _short(message: str, most: int = 1000) -> str:
    """Leave out the middle of a long message: it may quote a value of megabytes."""
    return message if len(message) <= most else f"{message[: most // 2]} … {message[-most // 2 :]}"


def _field_in(reason: str) -> str | None:
    """Find the field that a message such as "Object missing required field `model`" names."""
    _, _, rest = reason.partition("field `")
    return rest.partition("`")[0] or None
