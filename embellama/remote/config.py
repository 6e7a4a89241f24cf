"""`RemoteConfig`: which servers compute, and how much they are asked for at once; each setting defined once."""

import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from embellama.config import convert
from embellama.errors import ConfigError
from embellama.remote.rate import Rate

# What a key may be made of: it is sent in a header.
KEY = re.compile(r"[\x21-\x7e]*")


class RemoteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of servers that compute in the place of a model in this process.

    A config is not checked when it is made, but by `checked()`.
    """

    url: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="Server that computes, such as http://127.0.0.1:8000/v1; given several times, all of them do.",
        ),
    ]
    model_name: Annotated[
        str, Meta(description="Model to ask the servers for; by default the only one that they list.")
    ] = ""
    tokenizer_path: Annotated[
        str,
        Meta(
            description="GGUF file of the embellama servers' own model: texts become tokens here, so that chunks and "
            "windows work; other weights than theirs are refused."
        ),
    ] = ""
    api_key: Annotated[str, Meta(description="Key that the servers ask for; others see it least in the variable.")] = ""
    concurrency: Annotated[int, Meta(ge=1, le=1024, description="Most requests that are open at once.")] = 8
    max_batch_size: Annotated[int, Meta(ge=1, le=2048, description="Most texts in one request.")] = 64
    rate_limit: Annotated[
        tuple[str, ...],
        Meta(description="Most requests or tokens that all servers get: 10/s, 2000/m, 100000tokens/m; may be several."),
    ] = ()
    timeout_s: Annotated[float, Meta(gt=0, description="Seconds after which a request without an answer is over.")] = (
        60.0
    )
    retry_s: Annotated[
        float, Meta(ge=0, description="Seconds for which a request that failed is sent again before its texts fail.")
    ] = 300.0
    int8_limit: Annotated[
        float,
        Meta(gt=0, le=1e30, description="The value that 127 stands for in int8 vectors; larger ones are clipped."),
    ] = 1.0

    def checked(self) -> "RemoteConfig":
        """Return this config with every field checked, and URLs as requests are sent to them.

        Raises:
            ConfigError: A field has the wrong type or is out of range. A key that is wrong is not quoted.
        """
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        config = convert(values, type(self))
        if not KEY.fullmatch(config.api_key):
            raise ConfigError(
                "api_key has a character that no header may have: a space, a line end or a letter beyond ASCII"
            )
        for limit in config.rate_limit:
            Rate.parse(limit)
        return msgspec.structs.replace(config, url=tuple(dict.fromkeys(map(_base, config.url))))


def _base(url: str) -> str:
    """Return what paths such as ``/embeddings`` are added to; a URL without a path is meant to have ``/v1``."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or parts.username is not None:
        told = url if "@" not in url else "…@" + url.rpartition("@")[2]
        raise ConfigError(f"url is {told!r}; it must be as http://host:8000/v1; a key goes into api_key")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix('/embeddings')}"
