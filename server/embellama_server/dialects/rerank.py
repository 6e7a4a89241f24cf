"""``/v1/rerank``, as Jina and Voyage have it.

A reranker scores query and document read together; any other model by the cosine of their vectors. Scores are the
engine's (`embellama.jobs.Ranking`).
"""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from embellama.jobs import Job, Jobs
from embellama.results import Ranking
from embellama_server import api
from embellama_server.api import BadRequest, Parser
from embellama_server.dialects import openai
from embellama_server.work import JSON, Endpoint, Reply, ReplyContext, Work


class Document(msgspec.Struct):
    """A document as an object."""

    text: str


class RerankRequest(msgspec.Struct):
    """Body of ``POST /v1/rerank``; fields it does not know are ignored."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: int | None = None
    top_k: int | None = None  # Voyage's
    return_documents: bool | None = None
    truncate: bool | int | str | None = None
    truncation: bool | None = None  # Voyage's


class Text(TypedDict):
    """A document's text."""

    text: str


class Result(TypedDict):
    """A document's score."""

    index: int
    relevance_score: float
    document: NotRequired[str | Text]


class RerankAnswer(TypedDict):
    """The best documents, best first; `data` is `results` again."""

    object: Literal["list"]
    model: str
    usage: dict[str, int]
    method: Literal["cross-encoder", "cosine"]
    results: list[Result]
    data: list[Result]


_parse = Parser(RerankRequest)


def rerank(body: bytes, _: str) -> Work:
    """Read ``POST /v1/rerank``."""
    request = _parse(body)
    documents = texts_of(request.documents)
    top_n = request.top_n if request.top_n is not None else request.top_k
    truncate = request.truncation if request.truncate is None else request.truncate

    def write(ranking: Ranking, context: ReplyContext) -> Reply:
        results: list[Result] = []
        for each in ranking.results:
            result: Result = {"index": each.index, "relevance_score": each.relevance_score}
            if request.return_documents:
                # Voyage's client takes the text itself, Jina's an object.
                text = documents[each.index]
                result["document"] = text if request.top_k is not None else {"text": text}
            results.append(result)
        answer: RerankAnswer = {
            "object": "list",
            "model": request.model or context.model.name,
            "usage": {"prompt_tokens": context.n_tokens, "total_tokens": context.n_tokens},
            "method": ranking.method,
            "results": results,
            "data": results,  # Voyage's word
        }
        return Reply(iter([api.dumps(answer)]))

    return ranking_work(request.model, request.query, documents, top_n, truncate, write)


def ranking_work(
    model: str | None, query: str, documents: list[str], top_n: int | None, truncate: Any, write: Any
) -> Work:
    """Make the work that every dialect's reranking is."""
    how = api.truncation(truncate)

    def ask(jobs: Jobs) -> Job[Ranking]:
        return jobs.rerank(query, documents, top_n=top_n, truncate=how)

    return Work(model, len(query) + sum(map(len, documents)), ask, write)


def texts_of(documents: Sequence[str | Document], param: str = "documents") -> list[str]:
    """Return documents as texts; raise `BadRequest` if there are none or too many."""
    if not documents:
        raise BadRequest(f"{param} is empty", param)
    if len(documents) > api.MAX_INPUTS:
        raise BadRequest(f"{param} has {len(documents)} items; the limit is {api.MAX_INPUTS}", param)
    return [each.text if isinstance(each, Document) else each for each in documents]


ENDPOINTS = [
    Endpoint(
        path,
        RerankRequest,
        rerank,
        openai.refuse,
        "Documents by how well they answer a query, as Jina and Voyage define it.",
        {JSON: RerankAnswer},
        {"query": "Who sleeps?", "documents": ["A dog runs.", "A cat sleeps."], "return_documents": True},
    )
    for path in ("/v1/rerank",)
]
