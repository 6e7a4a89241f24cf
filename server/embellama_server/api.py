"""What every dialect needs: bodies read, errors named, vectors written.

bytes ── Parser ──► a dialect's request type
errors ── problem ──► Problem, status and headers
vectors ── Encoding ──► floats, base64 or bytes, of one dtype or several
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar, get_args

import msgspec
import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from embellama import errors
from embellama.errors import EmbellamaError, InputError, InvalidOption
from embellama.jobs import Jobs
from embellama.options import Truncate
from embellama.outputs import Dtype, quantize
from embellama_server.work import Problem, ReplyContext

MAX_INPUTS = 2048  # OpenAI's limit

Request = TypeVar("Request")


class BadRequest(InputError):
    """The request itself is wrong. `param` is the field at fault, `index` its item if it is a list."""

    def __init__(self, message: str, param: str | None = None, index: int | None = None):
        super().__init__(message, param, index)
        self.param, self.index = param, index

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyTokens(BadRequest):
    """The texts of one request have more tokens than a request may have."""


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
    TooManyTokens: (400, "invalid_request_error", "max_tokens_per_request"),
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


def problem(error: Exception) -> tuple[Problem, dict[str, str]]:
    """Say what an error is to a client, and the headers that go with it; what is not ours tells no details."""
    status, type_, code = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    index = getattr(error, "index", None)
    param = getattr(error, "option", None) or getattr(error, "param", None)
    if isinstance(error, errors.ModelNotFound):
        param = "model"
    elif isinstance(error, errors.PromptError):
        param = "prompt_name"
    message = _short(str(error)) if isinstance(error, EmbellamaError) else "internal error"
    # OpenAI's SDK obeys it, up to a minute.
    headers = {"retry-after": str(math.ceil(getattr(error, "retry_after_s", 1.0)))} if status == 503 else {}
    return Problem(status, message, type_, code, param or ("input" if index is not None else None), index), headers


class Error(TypedDict):
    """An error, in OpenAI's words; `index` is the text's at fault."""

    message: str
    type: str
    param: str | None
    code: str | None
    index: NotRequired[int]


class Refusal(TypedDict):
    """OpenAI's error body, which also is ours wherever no dialect has its own."""

    error: Error


def refuse(problem: Problem) -> Refusal:
    """Make OpenAI's error body."""
    error: Error = {
        "message": problem.message,
        "type": problem.type,
        "param": problem.param,
        "code": problem.code,
    }
    if problem.index is not None:
        error["index"] = problem.index
    return {"error": error}


# What decoding raises for a body that is not JSON.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Parser(Generic[Request]):
    """Reads bodies of one type."""

    def __init__(self, kind: type[Request], **allowed: str):
        """Prepare to read `kind`; `allowed` says for a field what its values may be, for messages."""
        self._decoder = msgspec.json.Decoder(kind)
        self._allowed = allowed

    def __call__(self, body: bytes) -> Request:
        """Decode and check a body.

        Raises:
            BadRequest: It is not JSON, or a field is missing or of the wrong type; `param` names the field.
        """
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at `$.")
            param = where.rstrip("`").partition("[")[0] or _field_in(reason)
            index = self._item_in(body, param) if "[" in where else None
            place = param if index is None else f"{param}[{index}]"
            allowed = f"; it must be {self._allowed[param]}" if param in self._allowed else ""
            raise BadRequest(f"{place}: {reason}{allowed}" if where else reason, param, index) from None
        except _UNREADABLE as error:
            raise BadRequest(f"the body is not valid JSON: {error}") from None

    def _item_in(self, body: bytes, param: str | None) -> int | None:
        """Find the first item of a list that may not be in it, if that can be; msgspec does not say which."""
        with contextlib.suppress(*_UNREADABLE, OverflowError):  # it was read no further than that item
            given = msgspec.json.decode(body).get(param)
            for index, item in enumerate(given if isinstance(given, list) else ()):  # a field may come twice
                try:
                    self._decoder.decode(msgspec.json.encode({param: [item]}))
                except msgspec.ValidationError as error:
                    if f"`$.{param}[" in str(error):  # else other fields are missing
                        return index
        return None


def items(value: str | Sequence[Any], param: str = "input") -> list[str] | list[list[int]]:
    """Return texts or token ids as a list: of texts, or of lists of token ids.

    Raises:
        BadRequest: There is nothing, kinds are mixed, or there are more than `MAX_INPUTS`.
    """
    if isinstance(value, str):
        value = [value]
    if value in ([""], []):
        raise BadRequest(f"{param} is empty; it must be a text, token ids, or a list of either", param)
    value = list(value)
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise BadRequest(f"{param} mixes texts and token ids; it must be all of one kind", param)
    if kinds == {int}:
        return [value]
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"{param} has {len(value)} items; the limit is {MAX_INPUTS}", param)
    return value


def truncation(value: bool | int | str | None, param: str = "truncate") -> Truncate:
    """Read how texts are cut: ours, or a dialect's "END" or true; None and false cut nothing."""
    if value is None or value is False:
        return "none"
    if value is True:
        return "end"
    if isinstance(value, str):
        value = value.lower()
        if value not in ("none", "end", "start"):
            raise InvalidOption(param, f"is {value!r}; it must be none, end, start, true, false or a number of tokens")
    return value  # type: ignore[return-value]


# What the dialects call the two sides of a search.
_QUERIES = {"query", "search_query", "retrieval.query"}
_DOCUMENTS = {"document", "passage", "search_document", "retrieval.passage"}


def prompt_of(jobs: Jobs, name: str | None) -> str | None:
    """Find the model's prompt for a dialect's word: its own of that name, or query's or document's."""
    if not name or name in jobs.prompts.names:
        return name or None
    return "query" if name in _QUERIES else "document" if name in _DOCUMENTS else name


# A vector as it is written: numbers, base64, or one of either for each dtype.
Vector = list[float] | str | dict[str, list[float] | str]


class Encoding(NamedTuple):
    """How vectors are written into an answer.

    dtypes: Each name as the client wrote it, and what it means.
    as_base64: Of the little-endian bytes of a row, as OpenAI's.
    several: Whether each vector is an object with a value for each name, even if there is one.
    """

    dtypes: dict[str, Dtype]
    as_base64: bool = False
    several: bool = False

    @classmethod
    def of(cls, names: str | list[str] | None, as_base64: bool = False, param: str = "output_dtype") -> "Encoding":
        """Read what a client asked for: one name, or several; None is float32."""
        if names is None:
            return cls({"float": "float32"}, as_base64)
        several = not isinstance(names, str)
        wanted = [names] if isinstance(names, str) else names
        if not wanted:
            raise InvalidOption(param, "is an empty list; leave it out, or name a dtype")
        if "base64" in wanted:  # Jina's word for floats in base64
            as_base64 = True
        dtypes: dict[str, Dtype] = {}
        for name in wanted:
            dtype = "float32" if name in ("float", "base64") else name
            if dtype not in get_args(Dtype):
                raise InvalidOption(param, f"is {name!r}; it must be one of float, {', '.join(get_args(Dtype))}")
            dtypes[name] = dtype  # type: ignore[assignment]
        return cls(dtypes, as_base64, several)

    def rows(self, vectors: NDArray[Any], limit: float) -> list[Any]:
        """Write some rows, as orjson takes them; `limit` is int8's (`embellama.outputs.quantize`)."""
        if not self.several:
            [dtype] = self.dtypes.values()
            return self._rows(vectors, dtype, limit)
        columns = {name: self._rows(vectors, dtype, limit) for name, dtype in self.dtypes.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _rows(self, vectors: NDArray[Any], dtype: Dtype, limit: float) -> list[Any]:
        rows = little_endian(vectors if dtype == "float32" else quantize(vectors, dtype, limit))
        return [pybase64.b64encode_as_string(row) for row in rows] if self.as_base64 else list(rows)


def little_endian(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows as their bytes are sent, whatever this machine's order."""
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))


# 64 rows of 1024 floats take orjson about 2 ms.
ROWS_A_PIECE = 64


def listed(vectors: NDArray[Any], encoding: Encoding, context: ReplyContext, wrap: Any = None) -> Iterator[bytes]:
    """Write vectors as the inside of a JSON list, in pieces; `wrap` makes each one's item of its index and value."""
    for start in range(0, len(vectors), ROWS_A_PIECE):
        rows = encoding.rows(vectors[start : start + ROWS_A_PIECE], context.config.int8_limit)
        if wrap:
            rows = [wrap(start + i, row) for i, row in enumerate(rows)]
        yield (b"," if start else b"") + dumps(rows)[1:-1]


def dumps(value: Any) -> bytes:
    """Write JSON; NumPy's arrays as lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _short(message: str, most: int = 1000) -> str:
    """Leave out the middle of a long message: it may quote a value of megabytes."""
    return message if len(message) <= most else f"{message[: most // 2]} … {message[-most // 2 :]}"


def _field_in(reason: str) -> str | None:
    """Find the field that a message such as "Object missing required field `model`" names."""
    _, _, rest = reason.partition("field `")
    return rest.partition("`")[0] or None
