"""text-embeddings-inference's ``/embed``, ``/embed_all``, ``/rerank`` and ``/similarity``.

Statuses are this server's, bodies are theirs.
"""

from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions, Truncate
from embellama.results import Embeddings, Ranking
from embellama.similarity import cosine
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import (
    BodyParser,
    TextObject,
    inputs_of,
    named,
    refuse_mixed,
    refuse_text_options,
    texts_of,
    with_prompt_of,
)
from embellama_server.dialects.rerank import (
    JinaRerank,
    JinaRerankAnswer,
    JinaRerankRequest,
    RankingRequest,
    ranking_job,
)
from embellama_server.dialects.vectors import FLOATS, json_items
from embellama_server.problems import BadRequest, Problem
from embellama_server.reply import JSON, Reply, ReplyContext, dumps

# The side of a text that is left out.
Direction = Literal["left", "right", "Left", "Right"]


class TEIEmbedBody(msgspec.Struct):
    """Body of ``POST /embed``."""

    inputs: str | list[str | int | list[int]]
    normalize: bool | None = None  # true by default
    truncate: bool | None = None
    truncation_direction: Direction | None = None  # right by default
    prompt_name: str | None = None
    dimensions: int | None = None


class TEIEmbedAllBody(msgspec.Struct):
    """Body of ``POST /embed_all``."""

    inputs: str | list[str]
    model: str | None = None  # as /tokenize has it
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class TEIRerankBody(msgspec.Struct):
    """Body of ``POST /rerank``; with `documents` in place of `texts` it is that of ``POST /v1/rerank``."""

    query: str
    model: str | None = None  # Jina's and llama-server's, as `top_n` is
    top_n: int | None = None
    texts: list[str] | None = None
    documents: list[str | TextObject] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    return_documents: bool | None = None
    top_k: int | None = None
    truncate: bool | int | str | None = None  # only Jina's has more than true and false
    truncation: bool | None = None
    truncation_direction: Direction | None = None


class TEISentences(msgspec.Struct):
    """One text, and those it is compared with."""

    source_sentence: str
    sentences: list[str]


class TEISimilarityParameters(msgspec.Struct, forbid_unknown_fields=True):
    """How the texts are read."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class TEISimilarityBody(msgspec.Struct):
    """Body of ``POST /similarity``."""

    inputs: TEISentences
    parameters: TEISimilarityParameters | None = None


class TEIRankedText(TypedDict):
    """A text's score."""

    index: int
    score: float
    text: NotRequired[str]


class TEIErrorBody(TypedDict):
    """text-embeddings-inference's error body."""

    error: str
    error_type: str


# Their names for what went wrong, by this server's statuses.
_ERROR_TYPES = {500: "Backend", 503: "Overloaded", 504: "Overloaded"}


def tei_error(problem: Problem) -> TEIErrorBody:
    """Make text-embeddings-inference's error body."""
    return {"error": problem.message, "error_type": _ERROR_TYPES.get(problem.status, "Validation")}


def _truncate(fields: TEIEmbedBody | TEIEmbedAllBody | TEIRerankBody | TEISimilarityParameters) -> Truncate:
    if not fields.truncate:
        return "none"
    return "start" if fields.truncation_direction in ("left", "Left") else "end"


# Fields of `TEIRerankBody` that have a meaning in one of its two bodies alone.
_ONLY_WITH_TEXTS = ("raw_scores", "return_text", "truncation_direction")
_ONLY_WITH_DOCUMENTS = ("documents", "return_documents", "top_k", "truncation")

# For messages about a wrong truncation_direction.
_DIRECTIONS = "left or right"


class TEIEmbed(Dialect[ParsedRequest, Embeddings]):
    """Vectors of texts."""

    paths = ("/embed", "/")  # Hugging Face's client posts to the address that it is given, as it is
    body_type = TEIEmbedBody
    error_body = TEIErrorBody
    answers = {JSON: list[list[float]]}
    about = "Vectors of texts, as text-embeddings-inference defines it."
    example = {"inputs": ["A cat sleeps."], "normalize": True}
    _body = BodyParser(TEIEmbedBody, truncation_direction=_DIRECTIONS)

    def parse(self, body: bytes, _: str) -> ParsedRequest:
        fields = self._body(body)
        options = EmbedOptions(
            prompt=fields.prompt_name,
            truncate=_truncate(fields),
            normalize=fields.normalize is not False,
            dimensions=fields.dimensions,
        )
        return ParsedRequest(
            inputs=inputs_of(fields.inputs, "inputs"),
            options=options,
            sent_as={"input": named("inputs", fields.inputs)},
        )

    def job(self, request: ParsedRequest, jobs: Jobs) -> Job[Embeddings]:
        if isinstance(request.inputs[0], str):
            return jobs.encode(request.inputs, with_prompt_of(jobs, request.options))
        refuse_text_options(request.options)
        return jobs.encode_ids(request.inputs, request.options)

    def reply(self, _: ParsedRequest, result: Embeddings, context: ReplyContext) -> Reply:
        return Reply(_bracketed(json_items(result.vectors, FLOATS, context)))

    def refuse(self, problem: Problem) -> TEIErrorBody:
        return tei_error(problem)


class TEIEmbedAll(Dialect[ParsedRequest, list[NDArray[Any]]]):
    """A vector for each token of each text."""

    paths = ("/embed_all",)
    body_type = TEIEmbedAllBody
    error_body = TEIErrorBody
    answers = {JSON: list[list[list[float]]]}
    about = "A vector for each token of each text."
    example = {"inputs": ["A cat sleeps."]}
    _body = BodyParser(TEIEmbedAllBody, truncation_direction=_DIRECTIONS)

    def parse(self, body: bytes, _: str) -> ParsedRequest:
        fields = self._body(body)
        texts = texts_of(fields.inputs, "inputs")
        options = EmbedOptions(prompt=fields.prompt_name, truncate=_truncate(fields))
        sent_as = {"input": named("inputs", fields.inputs)}
        return ParsedRequest(inputs=texts, model=fields.model, options=options, sent_as=sent_as)

    def job(self, request: ParsedRequest, jobs: Jobs) -> Job[list[NDArray[Any]]]:
        return jobs.tokens(request.inputs, with_prompt_of(jobs, request.options))

    def reply(self, _: ParsedRequest, result: list[NDArray[Any]], context: ReplyContext) -> Reply:
        return Reply(_bracketed(self._lists(result, context)))

    def _lists(self, result: list[NDArray[Any]], context: ReplyContext) -> Iterator[bytes]:
        for i, rows in enumerate(result):
            yield b",[" if i else b"["
            yield from json_items(rows, FLOATS, context)
            yield b"]"

    def refuse(self, problem: Problem) -> TEIErrorBody:
        return tei_error(problem)


class TEIRerankRequest(RankingRequest, kw_only=True):
    """What ``POST /rerank`` asks for.

    Attributes:
        raw_scores: Whether a reranker's scores are given as they are, rather than between 0 and 1.
    """

    raw_scores: bool


class TEIRerank(Dialect[TEIRerankRequest | JinaRerankRequest, Ranking]):
    """Texts by relevance; for Jina's body, which llama-server and vLLM take here too, Jina's answer."""

    paths = ("/rerank",)
    body_type = TEIRerankBody
    error_body = TEIErrorBody
    answers = {JSON: list[TEIRankedText] | JinaRerankAnswer}
    operation = "rerank"
    about = "Texts by relevance, as text-embeddings-inference defines it."
    example = {"query": "Who sleeps?", "texts": ["A dog runs.", "A cat sleeps."], "return_text": True}
    _body = BodyParser(TEIRerankBody, truncation_direction=_DIRECTIONS)
    _jinas = JinaRerank()

    def parse(self, body: bytes, accept: str) -> TEIRerankRequest | JinaRerankRequest:
        fields = self._body(body)
        if fields.texts is None and fields.documents is not None:
            refuse_mixed(fields, _ONLY_WITH_TEXTS, "documents")
            return self._jinas.parse(body, accept)
        if fields.texts is None:
            raise BadRequest("Object missing required field `texts`", "texts")
        refuse_mixed(fields, _ONLY_WITH_DOCUMENTS, "texts")
        if not isinstance(fields.truncate, bool | None):
            raise BadRequest(f"truncate: Expected `bool | null`, got {fields.truncate!r}", "truncate")
        texts = texts_of(fields.texts, "texts")
        return TEIRerankRequest(
            inputs=[fields.query, *texts],
            model=fields.model,
            options=EmbedOptions(truncate=_truncate(fields)),
            sent_as={"input": "texts[]"},
            top_n=fields.top_n,
            documents=texts if fields.return_text else None,
            raw_scores=bool(fields.raw_scores),
        )

    def job(self, request: TEIRerankRequest | JinaRerankRequest, jobs: Jobs) -> Job[Ranking]:
        return ranking_job(request, jobs)

    def reply(self, request: TEIRerankRequest | JinaRerankRequest, result: Ranking, context: ReplyContext) -> Reply:
        if isinstance(request, JinaRerankRequest):
            return self._jinas.reply(request, result, context)
        results: list[TEIRankedText] = []
        for each in result.results:
            score = each.relevance_score
            if result.method == "cross-encoder" and not request.raw_scores:
                score = float(1 / (1 + np.exp(-np.float64(score))))
            item: TEIRankedText = {"index": each.index, "score": score}
            if request.documents is not None:
                item["text"] = request.documents[each.index]
            results.append(item)
        return Reply(iter([dumps(results)]))

    def refuse(self, problem: Problem) -> TEIErrorBody:
        return tei_error(problem)


class TEISimilarity(Dialect[ParsedRequest, Embeddings]):
    """How alike texts are; the `inputs` are the texts, and last the one they are compared with."""

    paths = ("/similarity",)
    body_type = TEISimilarityBody
    error_body = TEIErrorBody
    answers = {JSON: list[float]}
    about = "How alike one text is to each of several."
    example = {"inputs": {"source_sentence": "A cat sleeps.", "sentences": ["A cat rests.", "A dog runs."]}}
    _body = BodyParser(TEISimilarityBody, **{"parameters.truncation_direction": _DIRECTIONS})

    def parse(self, body: bytes, _: str) -> ParsedRequest:
        fields = self._body(body)
        given, how = fields.inputs, fields.parameters or TEISimilarityParameters()
        return ParsedRequest(
            inputs=[*texts_of(given.sentences, "inputs.sentences"), given.source_sentence],
            options=EmbedOptions(prompt=how.prompt_name, truncate=_truncate(how)),
            sent_as={
                "input": "inputs.sentences[]",
                f"input[{len(given.sentences)}]": "inputs.source_sentence",
                "prompt_name": "parameters.prompt_name",
            },
        )

    def job(self, request: ParsedRequest, jobs: Jobs) -> Job[Embeddings]:
        return jobs.encode(request.inputs, with_prompt_of(jobs, request.options))

    def reply(self, _: ParsedRequest, result: Embeddings, __: ReplyContext) -> Reply:
        vectors = result.vectors
        return Reply(iter([dumps(cosine(vectors[-1], vectors[:-1]))]))

    def refuse(self, problem: Problem) -> TEIErrorBody:
        return tei_error(problem)


def _bracketed(inside: Iterator[bytes]) -> Iterator[bytes]:
    yield b"["
    yield from inside
    yield b"]"
