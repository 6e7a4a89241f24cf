"""Errors as clients are told of them: a status, a message, OpenAI's `type` and `code`.

an exception ── problem_of, by STATUSES ──► Problem ── a dialect's `refuse`, or `openai_error` ──► the body of a reply

The library knows no HTTP. What can be wrong with a request itself rather than with its texts is raised as one of the
errors defined here.
"""

import math
import re
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import msgspec

from embellama import errors
from embellama.errors import EmbellamaError, InputError
from embellama_server.workers.dispatcher import TooManyForDeadline


class BadRequest(InputError):
    """The request itself is wrong. `param` is the field at fault, `index` its item if it is a list."""

    def __init__(self, message: str, param: str | None = None, index: int | None = None):
        super().__init__(message, param, index)
        self.param, self.index = param, index

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyTokens(BadRequest):
    """The texts of one request have more tokens than a request may have."""


class Conflict(BadRequest):
    """It does not go with what the server is, or does just now."""


class BodyTooLarge(BadRequest):
    """The body has more bytes than the server takes."""


class StorageFull(BadRequest):
    """There is no room on disk for what is to be kept."""


class BodyTooSlow(BadRequest):
    """The body was not here in time."""


class UnsupportedEncoding(BadRequest):
    """The body is compressed."""


class InvalidKey(BadRequest):
    """The request has no API key that is known."""


class NotAllowed(BadRequest):
    """The request's key may not do this."""


class RateLimited(EmbellamaError):
    """The request's key has no more of a limit left. `retry_after_s` is when it will have; infinite for never."""

    def __init__(self, reason: str, retry_after_s: float):
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return self.reason


class NotFound(BadRequest):
    """There is nothing at this path."""


class MethodNotAllowed(BadRequest):
    """The path does not answer this method."""


# The status of each error, OpenAI's `type` and its `code`. The most particular class wins.
STATUSES: dict[type[Exception], tuple[int, str, str | None]] = {
    errors.InputError: (400, "invalid_request_error", None),
    errors.TextTooLong: (400, "invalid_request_error", errors.TextTooLong.code),
    TooManyForDeadline: (400, "invalid_request_error", "max_tokens_per_request"),
    TooManyTokens: (400, "invalid_request_error", "max_tokens_per_request"),
    InvalidKey: (401, "invalid_request_error", "invalid_api_key"),
    NotAllowed: (403, "permission_error", "not_allowed"),
    errors.ModelNotFound: (404, "invalid_request_error", errors.ModelNotFound.code),
    NotFound: (404, "invalid_request_error", "not_found"),
    MethodNotAllowed: (405, "invalid_request_error", "method_not_allowed"),
    Conflict: (409, "invalid_request_error", "conflict"),
    BodyTooSlow: (408, "invalid_request_error", "request_timeout"),
    BodyTooLarge: (413, "invalid_request_error", "request_too_large"),
    StorageFull: (413, "invalid_request_error", "storage_full"),
    UnsupportedEncoding: (415, "invalid_request_error", "unsupported_encoding"),
    RateLimited: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.ModelError: (500, "server_error", errors.ModelError.code),
    errors.ServiceError: (503, "server_error", errors.ServiceError.code),
    errors.Overloaded: (503, "server_error", errors.Overloaded.code),
    errors.DeadlineExceeded: (504, "server_error", errors.DeadlineExceeded.code),
    Exception: (500, "server_error", "internal_error"),
}


# How messages of the library begin that are about one of our fields and call it otherwise.
_LIBRARY_WORDS = {"prompt_name": ("prompt",), "query": ("the query",)}


class Problem(msgspec.Struct, frozen=True):
    """An error as clients are told of it, in OpenAI's words; every dialect has its own shape for them."""

    status: int
    message: str
    type: str
    code: str | None
    param: str | None
    index: int | None


def as_sent(problem: Problem, sent_as: Mapping[str, str]) -> Problem:
    """Name the field at fault, and its item, as the client did, in a problem that has our names for them.

    Args:
        problem: Names ``input``, ``prompt_name`` and so on as the library does, and its text as "text 1".
        sent_as: The client's names, as `ParsedRequest.sent_as` has them.
    """
    ours, index, message = problem.param, problem.index, problem.message
    if ours is None:
        return problem
    theirs = sent_as.get(ours, ours)
    if (alone := sent_as.get(f"{ours}[{index}]")) is not None:
        theirs, index = alone, None
    param, is_list = theirs.removesuffix("[]"), theirs.endswith("[]")
    if problem.index is not None:
        place = f"{param}[{index}]" if is_list else param
        message = re.sub(rf"\btext {problem.index}\b", lambda _: place, message, count=1)
    for word in (ours, *_LIBRARY_WORDS.get(ours, ())):
        if message.startswith(f"{word} "):
            message = param + message[len(word) :]
            break
    return msgspec.structs.replace(problem, param=param, index=index, message=message)


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """Describe an error to a client, with the headers that go with it; an unexpected one tells no details."""
    status, type_, code = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    index = getattr(error, "index", None)
    param = getattr(error, "option", None) or getattr(error, "param", None)
    if isinstance(error, errors.ModelNotFound):
        param = "model"
    elif isinstance(error, errors.PromptError):
        param = "prompt_name"
    message = _short(str(error)) if isinstance(error, EmbellamaError) else "internal error"
    problem = Problem(status, message, type_, code, param or ("input" if index is not None else None), index)
    return problem, _headers(error, status)


def _headers(error: Exception, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if status not in (429, 503):
        return {}
    seconds = getattr(error, "retry_after_s", 1.0)
    if seconds == math.inf:
        return {"x-should-retry": "false"}  # as OpenAI's servers tell their SDK
    return {"retry-after": str(max(1, math.ceil(seconds)))}  # which it obeys, up to a minute


class OpenAIError(TypedDict):
    """An error, in OpenAI's words; `index` is the position of the text at fault."""

    message: str
    type: str
    param: str | None
    code: str | None
    index: NotRequired[int]


class OpenAIErrorBody(TypedDict):
    """OpenAI's error body, which is the server's own wherever no dialect has one."""

    error: OpenAIError


def openai_error(problem: Problem) -> OpenAIErrorBody:
    """Make OpenAI's error body."""
    error: OpenAIError = {
        "message": problem.message,
        "type": problem.type,
        "param": problem.param,
        "code": problem.code,
    }
    if problem.index is not None:
        error["index"] = problem.index
    return {"error": error}


def _short(message: str, most: int = 1000) -> str:
    """Leave out the middle of a long message: it may quote a value of megabytes."""
    return message if len(message) <= most else f"{message[: most // 2]} … {message[-most // 2 :]}"
