"""Cohere's ``/v2/embed`` and ``/v2/rerank``."""

import uuid
from collections.abc import Iterator
from typing import Literal, NotRequired, TypedDict

import msgspec

from embellama.errors import InvalidOption
from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Embeddings, Ranking
from embellama_server import api
from embellama_server.api import BadRequest, Encoding, Parser
from embellama_server.dialects import openai
from embellama_server.dialects.rerank import Document, Text, ranking_work, texts_of
from embellama_server.work import JSON, Endpoint, Problem, Reply, ReplyContext, Work


class Content(msgspec.Struct):
    """A part of an input."""

    type: str
    text: str = ""


class Input(msgspec.Struct):
    """An input in parts."""

    content: list[Content]


class EmbedRequest(msgspec.Struct):
    """Body of ``POST /v2/embed``."""

    model: str
    input_type: str | None = None
    texts: list[str] | None = None
    inputs: list[Input] | None = None
    embedding_types: list[str] | None = None
    truncate: str | None = None  # Cohere's default is END
    max_tokens: int | None = None
    output_dimension: int | None = None


class RerankRequest(msgspec.Struct):
    """Body of ``POST /v2/rerank``."""

    model: str
    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None


class Version(TypedDict):
    """Of Cohere's API."""

    version: str


class Meta(TypedDict):
    """What a request would have cost."""

    api_version: Version
    billed_units: dict[str, int]


class EmbedAnswer(TypedDict):
    """Vectors for each of the types asked for, in the texts' order."""

    id: str
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    response_type: Literal["embeddings_by_type"]
    meta: Meta


class Result(TypedDict):
    """A document's score."""

    index: int
    relevance_score: float
    document: NotRequired[Text]


class RerankAnswer(TypedDict):
    """The best documents, best first."""

    id: str
    results: list[Result]
    meta: Meta


class Refusal(TypedDict):
    """Cohere's error body."""

    id: str
    message: str


_parse_embed, _parse_rerank = Parser(EmbedRequest), Parser(RerankRequest)


def embed(body: bytes, _: str) -> Work:
    """Read ``POST /v2/embed``."""
    request = _parse_embed(body)
    texts = _texts(request)
    types = request.embedding_types or ["float"]
    as_base64 = "base64" in types
    if as_base64 and len(types) > 1:
        raise InvalidOption("embedding_types", "has base64 and others; ask for it alone")
    encoding = Encoding.of(types, as_base64, "embedding_types")
    truncate = api.truncation("end" if request.truncate is None else request.truncate)
    how = truncate if request.max_tokens is None or truncate == "none" else request.max_tokens

    def ask(jobs: Jobs) -> Job[Embeddings]:
        openai.check(jobs, encoding)
        prompt = api.prompt_of(jobs, _known(jobs, request.input_type))
        return jobs.encode(texts, EmbedOptions(prompt=prompt, truncate=how, dimensions=request.output_dimension))

    def write(answer: Embeddings, context: ReplyContext) -> Reply:
        return Reply(_written(answer, context))

    def _written(answer: Embeddings, context: ReplyContext) -> Iterator[bytes]:
        yield b'{"id":"%s","embeddings":{' % str(uuid.uuid4()).encode()
        for i, (name, dtype) in enumerate(encoding.dtypes.items()):
            yield (b"," if i else b"") + api.dumps(name) + b":["
            yield from api.listed(answer.vectors, Encoding({name: dtype}, as_base64), context)
            yield b"]"
        rest = {"texts": texts, "response_type": "embeddings_by_type", "meta": _meta(input_tokens=context.n_tokens)}
        yield b"}," + api.dumps(rest)[1:]

    return Work(request.model, sum(map(len, texts)), ask, write)


def rerank(body: bytes, _: str) -> Work:
    """Read ``POST /v2/rerank``."""
    request = _parse_rerank(body)
    documents = texts_of(request.documents)

    def write(ranking: Ranking, _: ReplyContext) -> Reply:
        results: list[Result] = [
            {"index": each.index, "relevance_score": each.relevance_score} for each in ranking.results
        ]
        if request.return_documents:
            for result in results:
                result["document"] = {"text": documents[result["index"]]}
        answer: RerankAnswer = {"id": str(uuid.uuid4()), "results": results, "meta": _meta(search_units=1)}
        return Reply(iter([api.dumps(answer)]))

    # Cohere cuts documents that are too long.
    return ranking_work(request.model, request.query, documents, request.top_n, "end", write)


def refuse(problem: Problem) -> Refusal:
    """Make Cohere's error body."""
    return {"id": str(uuid.uuid4()), "message": problem.message}


def _texts(request: EmbedRequest) -> list[str]:
    if request.inputs is not None and request.texts is None:
        for i, each in enumerate(request.inputs):
            for part in each.content:
                if part.type != "text":
                    raise BadRequest(f"inputs[{i}] has content of type {part.type!r}; only text is known", "inputs")
        return texts_of(["\n".join(part.text for part in each.content) for each in request.inputs], "inputs")
    return texts_of(request.texts or [], "texts")


def _known(jobs: Jobs, name: str | None) -> str | None:
    """Leave out an input type that means nothing to this model: with Cohere's client, everybody must give one."""
    return None if name in ("classification", "clustering") and name not in jobs.prompts.names else name


def _meta(**units: int) -> Meta:
    return {"api_version": {"version": "2"}, "billed_units": units}


ENDPOINTS = [
    Endpoint(
        "/v2/embed",
        EmbedRequest,
        embed,
        refuse,
        "Vectors of texts, as Cohere defines it.",
        {JSON: EmbedAnswer},
        {"texts": ["A cat sleeps."], "input_type": "search_document", "embedding_types": ["float", "int8"]},
    ),
    Endpoint(
        "/v2/rerank",
        RerankRequest,
        rerank,
        refuse,
        "Documents by relevance, as Cohere defines it.",
        {JSON: RerankAnswer},
        {"query": "Who sleeps?", "documents": ["A dog runs.", "A cat sleeps."], "top_n": 1},
    ),
]
