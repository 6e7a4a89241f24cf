"""text-embeddings-inference's ``/embed``, ``/embed_all``, ``/rerank``, ``/similarity``, and what goes with them.

Statuses are this server's, bodies are theirs.
"""

from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions, OutputOptions, TokenOptions
from embellama.results import Embeddings, Ranking
from embellama.similarity import cosine
from embellama_server import api
from embellama_server.api import Encoding, Parser
from embellama_server.dialects import openai
from embellama_server.dialects.rerank import ranking_work, texts_of
from embellama_server.work import JSON, Endpoint, Problem, Reply, ReplyContext, Work

# Their names for what went wrong, by this server's statuses.
_KINDS = {400: "Validation", 404: "Validation", 413: "Validation", 500: "Backend", 503: "Overloaded", 504: "Overloaded"}

FLOATS = Encoding.of(None)


class EmbedRequest(msgspec.Struct):
    """Body of ``POST /embed``."""

    inputs: str | list[str | int | list[int]]
    normalize: bool = True
    truncate: bool = False
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    prompt_name: str | None = None
    dimensions: int | None = None


class EmbedAllRequest(msgspec.Struct):
    """Body of ``POST /embed_all``."""

    inputs: str | list[str]
    truncate: bool = False
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    prompt_name: str | None = None


class RerankRequest(msgspec.Struct):
    """Body of ``POST /rerank``."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"


class Compared(msgspec.Struct):
    """One text, and those it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(msgspec.Struct):
    """Body of ``POST /similarity``."""

    inputs: Compared
    parameters: dict[str, Any] | None = None


class Result(TypedDict):
    """A text's score."""

    index: int
    score: float
    text: NotRequired[str]


class Refusal(TypedDict):
    """Their error body."""

    error: str
    error_type: str


_DIRECTION = "left or right"
_parse_embed = Parser(EmbedRequest, truncation_direction=_DIRECTION)
_parse_embed_all = Parser(EmbedAllRequest, truncation_direction=_DIRECTION)
_parse_rerank = Parser(RerankRequest, truncation_direction=_DIRECTION)
_parse_similarity = Parser(SimilarityRequest)


def embed(body: bytes, _: str) -> Work:
    """Read ``POST /embed``."""
    request = _parse_embed(body)
    texts: Any = api.items(request.inputs, "inputs")
    truncate = _truncate(request)

    def ask(jobs: Jobs) -> Job[Embeddings]:
        openai.check(jobs, FLOATS, request.normalize, "normalize")
        if isinstance(texts[0], str):
            prompt = api.prompt_of(jobs, request.prompt_name)
            return jobs.encode(texts, EmbedOptions(prompt=prompt, truncate=truncate, dimensions=request.dimensions))
        return jobs.encode_ids(texts, OutputOptions(dimensions=request.dimensions))

    def write(answer: Embeddings, context: ReplyContext) -> Reply:
        return Reply(_list(api.listed(answer.vectors, FLOATS, context)))

    return Work(None, sum(map(len, texts)), ask, write)


def embed_all(body: bytes, _: str) -> Work:
    """Read ``POST /embed_all``: a vector for each token."""
    request = _parse_embed_all(body)
    texts = texts_of([request.inputs] if isinstance(request.inputs, str) else request.inputs, "inputs")
    truncate = _truncate(request)

    def ask(jobs: Jobs) -> Job[list[NDArray[Any]]]:
        prompt = api.prompt_of(jobs, request.prompt_name)
        return jobs.tokens(texts, TokenOptions(prompt=prompt, truncate=truncate))

    def write(answer: list[NDArray[Any]], context: ReplyContext) -> Reply:
        def pieces() -> Iterator[bytes]:
            for i, rows in enumerate(answer):
                yield b",[" if i else b"["
                yield from api.listed(rows, FLOATS, context)
                yield b"]"

        return Reply(_list(pieces()))

    return Work(None, sum(map(len, texts)), ask, write)


def rerank(body: bytes, _: str) -> Work:
    """Read ``POST /rerank``."""
    request = _parse_rerank(body)
    texts = texts_of(request.texts, "texts")

    def write(ranking: Ranking, _: ReplyContext) -> Reply:
        results: list[Result] = []
        for each in ranking.results:
            score = each.relevance_score
            if ranking.method == "cross-encoder" and not request.raw_scores:
                score = float(1 / (1 + np.exp(-np.float64(score))))
            result: Result = {"index": each.index, "score": score}
            if request.return_text:
                result["text"] = texts[each.index]
            results.append(result)
        return Reply(iter([api.dumps(results)]))

    return ranking_work(None, request.query, texts, None, _truncate(request), write)


def similarity(body: bytes, _: str) -> Work:
    """Read ``POST /similarity``."""
    compared = _parse_similarity(body).inputs
    texts = [*texts_of(compared.sentences, "inputs.sentences"), compared.source_sentence]

    def write(answer: Embeddings, _: ReplyContext) -> Reply:
        vectors = answer.vectors
        return Reply(iter([api.dumps(cosine(vectors[-1], vectors[:-1]))]))

    return Work(None, sum(map(len, texts)), lambda jobs: jobs.encode(texts), write)


def refuse(problem: Problem) -> Refusal:
    """Make their error body."""
    return {"error": problem.message, "error_type": _KINDS.get(problem.status, "Validation")}


def _truncate(request: EmbedRequest | EmbedAllRequest | RerankRequest) -> Any:
    if not request.truncate:
        return "none"
    return "start" if request.truncation_direction.lower() == "left" else "end"


def _list(inside: Iterator[bytes]) -> Iterator[bytes]:
    yield b"["
    yield from inside
    yield b"]"


ENDPOINTS = [
    *(
        # Hugging Face's client posts to the address that it is given, as it is.
        Endpoint(
            path,
            EmbedRequest,
            embed,
            refuse,
            "Vectors of texts, as text-embeddings-inference defines it.",
            {JSON: list[list[float]]},
            {"inputs": ["A cat sleeps."]},
        )
        for path in ("/embed", "/")
    ),
    Endpoint(
        "/embed_all",
        EmbedAllRequest,
        embed_all,
        refuse,
        "A vector for each token of each text.",
        {JSON: list[list[list[float]]]},
        {"inputs": ["A cat sleeps."]},
    ),
    Endpoint(
        "/rerank",
        RerankRequest,
        rerank,
        refuse,
        "Texts by relevance, as text-embeddings-inference defines it.",
        {JSON: list[Result]},
        {"query": "Who sleeps?", "texts": ["A dog runs.", "A cat sleeps."], "return_text": True},
    ),
    Endpoint(
        "/similarity",
        SimilarityRequest,
        similarity,
        refuse,
        "How alike one text is to each of several.",
        {JSON: list[float]},
        {"inputs": {"source_sentence": "A cat sleeps.", "sentences": ["A cat rests.", "A dog runs."]}},
    ),
]
