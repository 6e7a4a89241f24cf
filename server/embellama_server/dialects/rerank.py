"""``/v1/rerank``, as Jina and Voyage have it; and what every dialect's reranking has in common.

A reranker scores query and document read together; any other model by the cosine of their vectors. Scores are the
engine's (`embellama.results.Ranking`).
"""

from typing import Literal, NotRequired, TypedDict

import msgspec

from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Ranking
from embellama.text.pairs import naming_the_query
from embellama_server.config import ServerConfig
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import BodyParser, TextObject, one_of, texts_of, truncation_of
from embellama_server.dialects.openai import DetailedErrorBody, detailed_error
from embellama_server.problems import Problem, TooManyTokens
from embellama_server.reply import JSON, Reply, ReplyContext, dumps


class RankingRequest(ParsedRequest, kw_only=True):
    """What a request to order documents asks for; its `inputs` are the query and then the documents.

    Attributes:
        top_n: Most results wanted.
        documents: The documents, where the reply repeats them; else None.
    """

    top_n: int | None = None
    documents: list[str] | None = None


def ranking_job(request: RankingRequest, jobs: Jobs) -> Job[Ranking]:
    """Make the job of a request to order documents."""
    query, *documents = request.inputs
    if jobs.reranker:
        _check_query(query, len(documents), jobs)
    return jobs.rerank(query, documents, top_n=request.top_n, truncate=request.options.truncate)


def _check_query(query: str, n_documents: int, jobs: Jobs) -> None:
    """Refuse a query that makes too many tokens with so many documents, before it is read with each of them."""
    assert isinstance(jobs.config, ServerConfig)
    limit = jobs.config.max_request_tokens
    with naming_the_query():
        [ids] = jobs.tokenizer.bare([query])
    if len(ids) * n_documents > limit:
        raise TooManyTokens(
            f"query has {len(ids)} tokens, and is read with each of {n_documents} documents; the limit is {limit} "
            "for one request",
            "query",
        )


class JinaRerankBody(msgspec.Struct):
    """Body of ``POST /v1/rerank``; fields it does not know are ignored."""

    query: str
    documents: list[str | TextObject]
    model: str | None = None
    top_n: int | None = None
    top_k: int | None = None  # Voyage's
    return_documents: bool | None = None
    truncate: bool | int | str | None = None
    truncation: bool | None = None  # Voyage's


class DocumentText(TypedDict):
    """A document's text, as an object."""

    text: str


class JinaRankedDocument(TypedDict):
    """A document's score."""

    index: int
    relevance_score: float
    document: NotRequired[str | DocumentText]


class JinaRerankAnswer(TypedDict):
    """The best documents, best first; `data` is `results` again."""

    object: Literal["list"]
    model: str
    usage: dict[str, int]
    method: Literal["cross-encoder", "cosine"]
    results: list[JinaRankedDocument]
    data: list[JinaRankedDocument]


class JinaRerankRequest(RankingRequest, kw_only=True):
    """What ``POST /v1/rerank`` asks for.

    Attributes:
        documents_as_objects: Whether documents are repeated as objects, for Jina's client, or as texts, for Voyage's.
    """

    documents_as_objects: bool


class JinaRerank(Dialect[JinaRerankRequest, Ranking]):
    """Documents by relevance."""

    paths = ("/v1/rerank",)
    body_type = JinaRerankBody
    error_body = DetailedErrorBody
    answers = {JSON: JinaRerankAnswer}
    operation = "rerank"
    about = "Documents by how well they answer a query, as Jina and Voyage define it."
    example = {"query": "Who sleeps?", "documents": ["A dog runs.", "A cat sleeps."], "return_documents": True}
    _body = BodyParser(JinaRerankBody)

    def parse(self, body: bytes, _: str) -> JinaRerankRequest:
        fields = self._body(body)
        documents = texts_of(fields.documents)
        truncate_field, truncate = truncation_of(fields.truncate, fields.truncation)
        top_n_field, top_n = one_of(("top_n", fields.top_n), ("top_k", fields.top_k))
        return JinaRerankRequest(
            inputs=[fields.query, *documents],
            model=fields.model,
            options=EmbedOptions(truncate=truncate),
            sent_as={"input": "documents[]", "top_n": top_n_field, "truncate": truncate_field},
            top_n=top_n,
            documents=documents if fields.return_documents else None,
            documents_as_objects=fields.top_k is None,
        )

    def job(self, request: JinaRerankRequest, jobs: Jobs) -> Job[Ranking]:
        return ranking_job(request, jobs)

    def reply(self, request: JinaRerankRequest, result: Ranking, context: ReplyContext) -> Reply:
        results: list[JinaRankedDocument] = []
        for each in result.results:
            item: JinaRankedDocument = {"index": each.index, "relevance_score": each.relevance_score}
            if request.documents is not None:
                text = request.documents[each.index]
                item["document"] = {"text": text} if request.documents_as_objects else text
            results.append(item)
        answer: JinaRerankAnswer = {
            "object": "list",
            "model": request.model or context.model.name,
            "usage": {"prompt_tokens": context.n_tokens, "total_tokens": context.n_tokens},
            "method": result.method,
            "results": results,
            "data": results,  # Voyage's word
        }
        return Reply(iter([dumps(answer)]))

    def refuse(self, problem: Problem) -> DetailedErrorBody:
        return detailed_error(problem)
