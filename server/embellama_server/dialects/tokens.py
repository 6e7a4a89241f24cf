"""Texts to token ids and back: ``/tokenize`` and ``/decode`` as text-embeddings-inference has them, ``/detokenize``.

Nothing is computed, so these jobs have no texts for the pool.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import msgspec

from embellama.jobs import Job, Jobs
from embellama_server import api
from embellama_server.api import Parser
from embellama_server.dialects import tei
from embellama_server.dialects.rerank import texts_of
from embellama_server.work import JSON, Endpoint, Reply, ReplyContext, Work

# 2,000 tokens take orjson about 1 ms, in which no other thread runs.
TOKENS_A_PIECE = 2000


class TokenizeRequest(msgspec.Struct):
    """Body of ``POST /tokenize``."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = None


class DecodeRequest(msgspec.Struct):
    """Body of ``POST /decode``."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True
    model: str | None = None


class DetokenizeRequest(msgspec.Struct):
    """Body of ``POST /detokenize``."""

    tokens: list[int]
    model: str | None = None


class Piece(TypedDict):
    """A token, and the characters of the text it is of."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DetokenizeAnswer(TypedDict):
    """The text."""

    content: str


_parse_tokenize, _parse_decode, _parse_detokenize = (
    Parser(TokenizeRequest),
    Parser(DecodeRequest),
    Parser(DetokenizeRequest),
)


def tokenize(body: bytes, _: str) -> Work:
    """Read ``POST /tokenize``."""
    request = _parse_tokenize(body)
    texts = texts_of([request.inputs] if isinstance(request.inputs, str) else request.inputs, "inputs")

    def answer(jobs: Jobs) -> Iterator[bytes]:
        prompted = texts
        if name := api.prompt_of(jobs, request.prompt_name):
            prompted = jobs.prompts.apply(name, texts)
        for i, text in enumerate(prompted):
            yield b",[" if i else b"[["
            found = jobs.tokenizer.pieces(text, special=request.add_special_tokens)
            for start in range(0, len(found), TOKENS_A_PIECE):
                items = api.dumps([piece._asdict() for piece in found[start : start + TOKENS_A_PIECE]])
                yield (b"," if start else b"") + items[1:-1]
            yield b"]"
        yield b"]"

    return _work(request.model, sum(map(len, texts)), answer)


def decode(body: bytes, _: str) -> Work:
    """Read ``POST /decode``."""
    request = _parse_decode(body)
    texts: Any = api.items(request.ids, "ids")

    def answer(jobs: Jobs) -> Iterator[bytes]:
        yield api.dumps([jobs.tokenizer.decode(ids, special=not request.skip_special_tokens) for ids in texts])

    return _work(request.model, sum(map(len, texts)), answer)


def detokenize(body: bytes, _: str) -> Work:
    """Read ``POST /detokenize``, which llama-server has too."""
    request = _parse_detokenize(body)

    def answer(jobs: Jobs) -> Iterator[bytes]:
        yield api.dumps({"content": jobs.tokenizer.decode(request.tokens)})

    return _work(request.model, len(request.tokens), answer)


def _work(model: str | None, size: int, answer: Callable[[Jobs], Iterator[bytes]]) -> Work:
    def ask(jobs: Jobs) -> Job[Any]:
        pieces = list(answer(jobs))  # here, for it may take a while
        return Job([], lambda _: pieces)

    def write(pieces: list[bytes], _: ReplyContext) -> Reply:
        return Reply(iter(pieces))

    return Work(model, size, ask, write, computes=False)


ENDPOINTS = [
    Endpoint(
        "/tokenize",
        TokenizeRequest,
        tokenize,
        tei.refuse,
        "The tokens of texts.",
        {JSON: list[list[Piece]]},
        {"inputs": "A cat sleeps."},
    ),
    Endpoint(
        "/decode",
        DecodeRequest,
        decode,
        tei.refuse,
        "Texts of token ids.",
        {JSON: list[str]},
        {"ids": [[5, 6]]},
    ),
    Endpoint(
        "/detokenize",
        DetokenizeRequest,
        detokenize,
        api.refuse,
        "The text of token ids.",
        {JSON: DetokenizeAnswer},
        {"tokens": [5, 6]},
    ),
]
