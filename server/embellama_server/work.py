"""What a request asks for, whatever dialect it came in.

body ── a dialect's parse ──► Work ──► app: model, tokens, pool ──► answer ── Work.write ──► Reply
                                any error ── Problem ── the dialect's refuse ──► its own error body
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from embellama.config import EngineConfig
from embellama.info import ModelInfo
from embellama.jobs import Job, Jobs
from embellama.results import Embeddings

JSON = "application/json"


class ReplyContext(NamedTuple):
    """What is known of a request when its answer is written.

    model: The model that answered.
    config: Its settings.
    n_tokens: Tokens computed.
    seconds: Since the request came.
    """

    model: ModelInfo
    config: EngineConfig
    n_tokens: int
    seconds: float


class Reply(NamedTuple):
    """An answer on its way out; each piece takes the event loop a few milliseconds at most."""

    pieces: Iterator[bytes]
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    status: int = 200


class Work(NamedTuple):
    """A request.

    model: The model asked for; None where the dialect has no say, which is the first one.
    n_characters: Of all its texts, or so many token ids: what tokenising it will take.
    ask: Makes the job, or raises what is wrong with it; may run in another thread.
    write: Makes the reply of what the job's `finish` returned.
    stream: Writes an `Embeddings` job a few rows at a time, so that the reply can begin before the job is done; None
        for a reply in one.
    computes: Whether the pool computes anything. What is only tokenised may have as many characters, or token ids, as a
        request may have tokens: there is no queue for it that would bound it otherwise.
    """

    model: str | None
    n_characters: int
    ask: Callable[[Jobs], Job[Any]]
    write: Callable[[Any, ReplyContext], Reply]
    stream: "Stream | None" = None
    computes: bool = True


class Stream(NamedTuple):
    """A reply in parts.

    rows: Writes some rows, given the first one's index.
    end: Writes what comes after the last.
    """

    content_type: str
    rows: Callable[[Embeddings, int, ReplyContext], bytes]
    end: Callable[[ReplyContext], bytes]


class Problem(msgspec.Struct, frozen=True):
    """An error as clients are told of it, in OpenAI's words; every dialect has its own shape for them."""

    status: int
    message: str
    type: str
    code: str | None
    param: str | None
    index: int | None


class Endpoint(NamedTuple):
    """A path that gives work to the pool.

    path: Where it is.
    request: The type its body is parsed as, for the description.
    parse: Reads a body and what the client accepts; raises `InputError` for what is wrong with them.
    refuse: Makes the body of an error; the type it is annotated with goes into the description.
    about: What it does, in a line.
    answers: The content types a good answer may have, and the type of its body; None for what is no JSON.
    example: A body, but for its `model`.
    """

    path: str
    request: type[msgspec.Struct]
    parse: Callable[[bytes, str], Work]
    refuse: Callable[[Problem], Any]
    about: str
    answers: Mapping[str, Any]
    example: Mapping[str, Any]
