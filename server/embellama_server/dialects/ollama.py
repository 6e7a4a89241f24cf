"""Ollama's ``/api/embed`` and its older ``/api/embeddings``."""

from collections.abc import Iterator
from typing import TypedDict

import msgspec

from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Embeddings
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import BodyParser, texts_of
from embellama_server.dialects.vectors import FLOATS, json_items
from embellama_server.problems import Problem
from embellama_server.reply import JSON, Reply, ReplyContext, dumps


class OllamaEmbedBody(msgspec.Struct):
    """Body of ``POST /api/embed``; `options` and `keep_alive` mean nothing here."""

    model: str
    input: str | list[str]
    truncate: bool | None = None  # Ollama's default is true
    dimensions: int | None = None


class OllamaEmbeddingsBody(msgspec.Struct):
    """Body of ``POST /api/embeddings``."""

    model: str
    prompt: str


class OllamaEmbedAnswer(TypedDict):
    """Vectors in the texts' order; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsAnswer(TypedDict):
    """The vector."""

    embedding: list[float]


class OllamaErrorBody(TypedDict):
    """Ollama's error body."""

    error: str


class OllamaRequest(ParsedRequest, kw_only=True):
    """What either path asks for.

    Attributes:
        tagged_model: The model's name as the client wrote it, perhaps with a tag.
    """

    tagged_model: str


class OllamaEmbed(Dialect[OllamaRequest, Embeddings]):
    """Vectors of texts."""

    paths = ("/api/embed",)
    body_type = OllamaEmbedBody
    error_body = OllamaErrorBody
    answers = {JSON: OllamaEmbedAnswer}
    about = "Vectors of texts, as Ollama defines it."
    example = {"input": ["A cat sleeps."]}
    _body = BodyParser(OllamaEmbedBody)

    def parse(self, body: bytes, _: str) -> OllamaRequest:
        fields = self._body(body)
        return OllamaRequest(
            inputs=texts_of(fields.input, "input"),
            model=_untagged(fields.model),
            options=EmbedOptions(truncate="none" if fields.truncate is False else "end", dimensions=fields.dimensions),
            tagged_model=fields.model,
        )

    def job(self, request: OllamaRequest, jobs: Jobs) -> Job[Embeddings]:
        return jobs.encode(request.inputs, request.options)

    def reply(self, request: OllamaRequest, result: Embeddings, context: ReplyContext) -> Reply:
        return Reply(self._json(request, result, context))

    def _json(self, request: OllamaRequest, result: Embeddings, context: ReplyContext) -> Iterator[bytes]:
        yield b'{"model":%s,"embeddings":[' % dumps(request.tagged_model)
        yield from json_items(result.vectors, FLOATS, context)
        nanoseconds = int(context.seconds * 1e9)
        rest = {"total_duration": nanoseconds, "load_duration": 0, "prompt_eval_count": context.n_tokens}
        yield b"]," + dumps(rest)[1:]

    def refuse(self, problem: Problem) -> OllamaErrorBody:
        return ollama_error(problem)


class OllamaEmbeddings(Dialect[OllamaRequest, Embeddings]):
    """The vector of one text."""

    paths = ("/api/embeddings",)
    body_type = OllamaEmbeddingsBody
    error_body = OllamaErrorBody
    answers = {JSON: OllamaEmbeddingsAnswer}
    about = "The vector of one text, as Ollama had it."
    example = {"prompt": "A cat sleeps."}
    _body = BodyParser(OllamaEmbeddingsBody)

    def parse(self, body: bytes, _: str) -> OllamaRequest:
        fields = self._body(body)
        return OllamaRequest(
            inputs=[fields.prompt],
            model=_untagged(fields.model),
            options=EmbedOptions(truncate="end"),
            tagged_model=fields.model,
        )

    def job(self, request: OllamaRequest, jobs: Jobs) -> Job[Embeddings]:
        return jobs.encode(request.inputs, request.options)

    def reply(self, _: OllamaRequest, result: Embeddings, __: ReplyContext) -> Reply:
        return Reply(iter([dumps({"embedding": result.vectors[0]})]))

    def refuse(self, problem: Problem) -> OllamaErrorBody:
        return ollama_error(problem)


def ollama_error(problem: Problem) -> OllamaErrorBody:
    """Make Ollama's error body."""
    return {"error": problem.message}


def _untagged(model: str) -> str:
    """Leave out the tag that every name has without one, which Ollama's client may write."""
    return model.removesuffix(":latest")
