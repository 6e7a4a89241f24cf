"""Ollama's ``/api/embed``, its older ``/api/embeddings``, and ``/api/show``."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypedDict

import msgspec

from embellama.info import ModelInfo
from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Embeddings
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import BodyParser, named, one_of, texts_of
from embellama_server.dialects.vectors import FLOATS, json_items
from embellama_server.problems import BadRequest, Problem
from embellama_server.reply import JSON, Reply, ReplyContext, dumps


class OllamaEmbedBody(msgspec.Struct):
    """Body of ``POST /api/embed``; `options` and `keep_alive` mean nothing here."""

    model: str
    input: str | list[str] | None = None
    truncate: bool | None = None  # Ollama's default is true
    dimensions: int | None = None


class OllamaEmbeddingsBody(msgspec.Struct):
    """Body of ``POST /api/embeddings``."""

    model: str
    prompt: str | None = None


class OllamaEmbedAnswer(TypedDict):
    """Vectors in the texts' order; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsAnswer(TypedDict):
    """The vector; empty for an empty prompt."""

    embedding: list[float]


class OllamaErrorBody(TypedDict):
    """Ollama's error body."""

    error: str


class OllamaShowBody(msgspec.Struct):
    """Body of ``POST /api/show``; `name` is the older word for `model`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None  # with it, Ollama also shows the whole vocabulary


class OllamaModelDetails(TypedDict):
    """A model's format, family and size."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaShowAnswer(TypedDict):
    """What is known of a model."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaModelDetails
    model_info: dict[str, str | int]
    capabilities: list[str]


class OllamaEmbed(Dialect[ParsedRequest, Embeddings]):
    """Vectors of texts."""

    paths = ("/api/embed",)
    body_type = OllamaEmbedBody
    error_body = OllamaErrorBody
    answers = {JSON: OllamaEmbedAnswer}
    about = "Vectors of texts, as Ollama defines it."
    example = {"input": ["A cat sleeps."]}
    _body = BodyParser(OllamaEmbedBody)

    def parse(self, body: bytes, _: str) -> ParsedRequest:
        fields = self._body(body)
        return ParsedRequest(
            # Without any text, Ollama loads the model and answers with no vectors.
            inputs=texts_of(fields.input, "input") if fields.input else [],
            model=fields.model,
            options=EmbedOptions(truncate="none" if fields.truncate is False else "end", dimensions=fields.dimensions),
            sent_as={"input": named("input", fields.input or [])},
        )

    def job(self, request: ParsedRequest, jobs: Jobs) -> Job[Embeddings]:
        return jobs.encode(request.inputs, request.options)

    def reply(self, request: ParsedRequest, result: Embeddings, context: ReplyContext) -> Reply:
        return Reply(self._json(request, result, context))

    def _json(self, request: ParsedRequest, result: Embeddings, context: ReplyContext) -> Iterator[bytes]:
        yield b'{"model":%s,"embeddings":[' % dumps(request.model)
        yield from json_items(result.vectors, FLOATS, context)
        nanoseconds = int(context.seconds * 1e9)
        rest = {"total_duration": nanoseconds, "load_duration": 0, "prompt_eval_count": context.n_tokens}
        yield b"]," + dumps(rest)[1:]

    def refuse(self, problem: Problem) -> OllamaErrorBody:
        return ollama_error(problem)


class OllamaEmbeddings(Dialect[ParsedRequest, Embeddings]):
    """The vector of one text."""

    paths = ("/api/embeddings",)
    body_type = OllamaEmbeddingsBody
    error_body = OllamaErrorBody
    answers = {JSON: OllamaEmbeddingsAnswer}
    about = "The vector of one text, as Ollama had it."
    example = {"prompt": "A cat sleeps."}
    _body = BodyParser(OllamaEmbeddingsBody)

    def parse(self, body: bytes, _: str) -> ParsedRequest:
        fields = self._body(body)
        return ParsedRequest(
            inputs=[fields.prompt] if fields.prompt else [],
            model=fields.model,
            options=EmbedOptions(truncate="end"),
            sent_as={"input": "prompt"},
        )

    def job(self, request: ParsedRequest, jobs: Jobs) -> Job[Embeddings]:
        return jobs.encode(request.inputs, request.options)

    def reply(self, _: ParsedRequest, result: Embeddings, __: ReplyContext) -> Reply:
        return Reply(iter([dumps({"embedding": result.vectors[0] if len(result.vectors) else []})]))

    def refuse(self, problem: Problem) -> OllamaErrorBody:
        return ollama_error(problem)


class OllamaShow(Dialect[ParsedRequest, None]):
    """What is known of a model."""

    paths = ("/api/show",)
    body_type = OllamaShowBody
    error_body = OllamaErrorBody
    answers = {JSON: OllamaShowAnswer}
    operation = "show"
    about = "What is known of a model, as Ollama tells it."
    example: ClassVar[Mapping[str, Any]] = {}
    _body = BodyParser(OllamaShowBody)

    def parse(self, body: bytes, _: str) -> ParsedRequest:
        fields = self._body(body)
        _, name = one_of(("model", fields.model or None), ("name", fields.name or None))
        if not name:
            raise BadRequest("model is missing", "model")
        return ParsedRequest(inputs=(), model=name, computes=False)

    def job(self, _: ParsedRequest, __: Jobs) -> Job[None]:
        return Job([], lambda _: None)

    def reply(self, _: ParsedRequest, __: None, context: ReplyContext) -> Reply:
        info = context.model
        answer: OllamaShowAnswer = {
            "modelfile": f"FROM {info.path}",
            "parameters": "",
            "template": "",
            "details": model_details(info),
            "model_info": {
                "general.architecture": info.architecture,
                "general.parameter_count": info.n_parameters,
                f"{info.architecture}.context_length": info.n_ctx,
                f"{info.architecture}.embedding_length": info.dim,
                f"{info.architecture}.pooling_type": info.pooling,
            },
            "capabilities": [] if info.pooling == "rank" else ["embedding"],
        }
        return Reply(iter([dumps(answer)]))

    def refuse(self, problem: Problem) -> OllamaErrorBody:
        return ollama_error(problem)


def model_details(info: ModelInfo) -> OllamaModelDetails:
    """Describe a model as Ollama's lists do."""
    millions = info.n_parameters / 1e6
    return {
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.2f}M",
        "quantization_level": info.quantization.upper(),
    }


def ollama_error(problem: Problem) -> OllamaErrorBody:
    """Make Ollama's error body."""
    return {"error": problem.message}
