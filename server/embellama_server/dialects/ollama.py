"""Ollama's ``/api/embed`` and its older ``/api/embeddings``."""

from collections.abc import Iterator
from typing import Any, TypedDict

import msgspec

from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Embeddings
from embellama_server import api
from embellama_server.api import Encoding, Parser
from embellama_server.dialects.rerank import texts_of
from embellama_server.work import JSON, Endpoint, Problem, Reply, ReplyContext, Work

FLOATS = Encoding.of(None)


class EmbedRequest(msgspec.Struct):
    """Body of ``POST /api/embed``; `options` and `keep_alive` mean nothing here."""

    model: str
    input: str | list[str]
    truncate: bool | None = None  # Ollama's default is true
    dimensions: int | None = None


class EmbeddingsRequest(msgspec.Struct):
    """Body of ``POST /api/embeddings``."""

    model: str
    prompt: str


class EmbedAnswer(TypedDict):
    """Vectors in the texts' order; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsAnswer(TypedDict):
    """The vector."""

    embedding: list[float]


class Refusal(TypedDict):
    """Ollama's error body."""

    error: str


_parse_embed, _parse_embeddings = Parser(EmbedRequest), Parser(EmbeddingsRequest)


def embed(body: bytes, _: str) -> Work:
    """Read ``POST /api/embed``."""
    request = _parse_embed(body)
    texts = texts_of([request.input] if isinstance(request.input, str) else request.input, "input")

    def write(answer: Embeddings, context: ReplyContext) -> Reply:
        def pieces() -> Iterator[bytes]:
            yield b'{"model":%s,"embeddings":[' % api.dumps(request.model)
            yield from api.listed(answer.vectors, FLOATS, context)
            nanoseconds = int(context.seconds * 1e9)
            rest = {"total_duration": nanoseconds, "load_duration": 0, "prompt_eval_count": context.n_tokens}
            yield b"]," + api.dumps(rest)[1:]

        return Reply(pieces())

    return _work(request.model, texts, request.truncate is not False, request.dimensions, write)


def embeddings(body: bytes, _: str) -> Work:
    """Read ``POST /api/embeddings``."""
    request = _parse_embeddings(body)

    def write(answer: Embeddings, _: ReplyContext) -> Reply:
        return Reply(iter([api.dumps({"embedding": answer.vectors[0]})]))

    return _work(request.model, texts_of([request.prompt], "prompt"), True, None, write)


def refuse(problem: Problem) -> Refusal:
    """Make Ollama's error body."""
    return {"error": problem.message}


def _work(model: str, texts: list[str], truncate: bool, dimensions: int | None, write: Any) -> Work:
    def ask(jobs: Jobs) -> Job[Embeddings]:
        return jobs.encode(texts, EmbedOptions(truncate=api.truncation(truncate), dimensions=dimensions))

    # Ollama's client may write the tag that every name has without one.
    return Work(model.removesuffix(":latest"), sum(map(len, texts)), ask, write)


ENDPOINTS = [
    Endpoint(
        "/api/embed",
        EmbedRequest,
        embed,
        refuse,
        "Vectors of texts, as Ollama defines it.",
        {JSON: EmbedAnswer},
        {"input": ["A cat sleeps."]},
    ),
    Endpoint(
        "/api/embeddings",
        EmbeddingsRequest,
        embeddings,
        refuse,
        "The vector of one text, as Ollama had it.",
        {JSON: EmbeddingsAnswer},
        {"prompt": "A cat sleeps."},
    ),
]
