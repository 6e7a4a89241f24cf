"""Replies on their way out: a status, headers, and a body in pieces.

a dialect's `reply` or `refuse` ──► Reply ──► Exchange.send ──► the client
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from embellama.config import EngineConfig
from embellama.info import ModelInfo

JSON = "application/json"


class Reply(NamedTuple):
    """A reply to be sent; each piece of its body takes the event loop a few milliseconds at most."""

    pieces: Iterator[bytes]
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    status: int = 200


class ReplyContext(NamedTuple):
    """What a reply may tell beside the result.

    model: The model that computed it.
    config: The model's settings.
    n_tokens: Tokens of the request.
    seconds: Time since the request came.
    """

    model: ModelInfo
    config: EngineConfig
    n_tokens: int
    seconds: float


def dumps(value: Any) -> bytes:
    """Write JSON; NumPy's arrays as lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
