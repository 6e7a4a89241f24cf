"""Cohere's ``/v2/embed`` and ``/v2/rerank``."""

import uuid
from collections.abc import Iterator
from typing import Literal, NotRequired, TypedDict

import msgspec

from embellama.errors import InvalidOption
from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Embeddings, Ranking
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import BodyParser, TextObject, texts_of, truncation, with_prompt_of, without_task
from embellama_server.dialects.rerank import DocumentText, RankingRequest, ranking_job
from embellama_server.dialects.vectors import Encoding, check_encoding, json_items
from embellama_server.problems import BadRequest, Problem
from embellama_server.reply import JSON, Reply, ReplyContext, dumps


class CohereContent(msgspec.Struct):
    """A part of an input."""

    type: str
    text: str = ""


class CohereInput(msgspec.Struct):
    """An input in parts."""

    content: list[CohereContent]


class CohereEmbedBody(msgspec.Struct):
    """Body of ``POST /v2/embed``."""

    model: str
    input_type: str | None = None
    texts: list[str] | None = None
    inputs: list[CohereInput] | None = None
    embedding_types: list[str] | None = None
    truncate: str | None = None  # Cohere's default is END
    max_tokens: int | None = None
    output_dimension: int | None = None


class CohereRerankBody(msgspec.Struct):
    """Body of ``POST /v2/rerank``."""

    model: str
    query: str
    documents: list[str | TextObject]
    top_n: int | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: int | None = None  # Cohere's default is 4096; here it is as many as the model reads


class CohereVersion(TypedDict):
    """The version of Cohere's API."""

    version: str


class CohereMeta(TypedDict):
    """What a request would have cost."""

    api_version: CohereVersion
    billed_units: dict[str, int]


class CohereEmbedAnswer(TypedDict):
    """Vectors for each of the types asked for, in the texts' order."""

    id: str
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    response_type: Literal["embeddings_by_type"]
    meta: CohereMeta


class CohereRankedDocument(TypedDict):
    """A document's score."""

    index: int
    relevance_score: float
    document: NotRequired[DocumentText]


class CohereRerankAnswer(TypedDict):
    """The best documents, best first."""

    id: str
    results: list[CohereRankedDocument]
    meta: CohereMeta


class CohereErrorBody(TypedDict):
    """Cohere's error body."""

    id: str
    message: str


class CohereEmbedRequest(ParsedRequest, kw_only=True):
    """What ``POST /v2/embed`` asks for.

    Attributes:
        texts: The texts, which the reply repeats.
        encoding: How vectors are written.
    """

    texts: list[str]
    encoding: Encoding

    @property
    def formats(self) -> tuple[str, ...]:
        return self.encoding.formats


class CohereEmbed(Dialect[CohereEmbedRequest, Embeddings]):
    """Vectors of texts."""

    paths = ("/v2/embed",)
    body_type = CohereEmbedBody
    error_body = CohereErrorBody
    answers = {JSON: CohereEmbedAnswer}
    about = "Vectors of texts, as Cohere defines it."
    example = {"texts": ["A cat sleeps."], "input_type": "search_document", "embedding_types": ["float", "int8"]}
    _body = BodyParser(CohereEmbedBody)

    def parse(self, body: bytes, _: str) -> CohereEmbedRequest:
        fields = self._body(body)
        texts = _texts(fields)
        types = fields.embedding_types or ["float"]
        as_base64 = "base64" in types
        if as_base64 and len(types) > 1:
            raise InvalidOption("embedding_types", "has base64 and others; ask for it alone")
        encoding = Encoding.of(types, as_base64, "embedding_types")
        truncate = truncation("end" if fields.truncate is None else fields.truncate)
        if fields.max_tokens is not None:
            if truncate != "end":
                raise InvalidOption("max_tokens", f"goes with truncate END alone, not with {fields.truncate}")
            truncate = fields.max_tokens
        options = EmbedOptions(prompt=fields.input_type, truncate=truncate, dimensions=fields.output_dimension)
        return CohereEmbedRequest(
            inputs=texts,
            model=fields.model,
            options=options,
            sent_as={
                "input": "texts[]" if fields.texts is not None else "inputs[]",
                "prompt_name": "input_type",
                "dimensions": "output_dimension",
                "dtype": "embedding_types",
                "truncate": "truncate" if truncate is not fields.max_tokens else "max_tokens",
            },
            texts=texts,
            encoding=encoding,
        )

    def job(self, request: CohereEmbedRequest, jobs: Jobs) -> Job[Embeddings]:
        check_encoding(jobs, request.encoding)
        # Cohere's client must give an input type, and these mean nothing to most models.
        options = without_task(jobs, request.options, ("classification", "clustering"))
        return jobs.encode(request.inputs, with_prompt_of(jobs, options))

    def reply(self, request: CohereEmbedRequest, result: Embeddings, context: ReplyContext) -> Reply:
        return Reply(self._json(request, result, context))

    def _json(self, request: CohereEmbedRequest, result: Embeddings, context: ReplyContext) -> Iterator[bytes]:
        yield b'{"id":"%s","embeddings":{' % str(uuid.uuid4()).encode()
        encoding = request.encoding
        for i, (name, dtype) in enumerate(encoding.dtypes.items()):
            yield (b"," if i else b"") + dumps(name) + b":["
            yield from json_items(result.vectors, Encoding({name: dtype}, encoding.as_base64), context)
            yield b"]"
        rest = {
            "texts": request.texts,
            "response_type": "embeddings_by_type",
            "meta": _meta(input_tokens=context.n_tokens),
        }
        yield b"}," + dumps(rest)[1:]

    def refuse(self, problem: Problem) -> CohereErrorBody:
        return cohere_error(problem)


class CohereRerankRequest(RankingRequest, kw_only=True):
    """What ``POST /v2/rerank`` asks for.

    Attributes:
        max_document_tokens: Most tokens of a document that are read.
    """

    max_document_tokens: int | None


class CohereRerank(Dialect[CohereRerankRequest, Ranking]):
    """Documents by relevance."""

    paths = ("/v2/rerank",)
    body_type = CohereRerankBody
    error_body = CohereErrorBody
    answers = {JSON: CohereRerankAnswer}
    operation = "rerank"
    about = "Documents by relevance, as Cohere defines it."
    example = {"query": "Who sleeps?", "documents": ["A dog runs.", "A cat sleeps."], "top_n": 1}
    _body = BodyParser(CohereRerankBody)

    def parse(self, body: bytes, _: str) -> CohereRerankRequest:
        fields = self._body(body)
        documents = texts_of(fields.documents)
        return CohereRerankRequest(
            inputs=[fields.query, *documents],
            model=fields.model,
            options=EmbedOptions(truncate="end"),  # Cohere cuts documents that are too long
            sent_as={"input": "documents[]"},
            top_n=fields.top_n,
            documents=documents if fields.return_documents else None,
            max_document_tokens=fields.max_tokens_per_doc,
        )

    def job(self, request: CohereRerankRequest, jobs: Jobs) -> Job[Ranking]:
        limit = jobs.tokenizer.limit
        if request.max_document_tokens is not None and request.max_document_tokens < limit:
            told = f"is {request.max_document_tokens}; documents are cut where the model ends, at {limit} tokens"
            raise InvalidOption("max_tokens_per_doc", told)
        return ranking_job(request, jobs)

    def reply(self, request: CohereRerankRequest, result: Ranking, context: ReplyContext) -> Reply:
        results: list[CohereRankedDocument] = []
        for each in result.results:
            item: CohereRankedDocument = {"index": each.index, "relevance_score": each.relevance_score}
            if request.documents is not None:
                item["document"] = {"text": request.documents[each.index]}
            results.append(item)
        answer: CohereRerankAnswer = {"id": str(uuid.uuid4()), "results": results, "meta": _meta(search_units=1)}
        return Reply(iter([dumps(answer)]))

    def refuse(self, problem: Problem) -> CohereErrorBody:
        return cohere_error(problem)


def cohere_error(problem: Problem) -> CohereErrorBody:
    """Make Cohere's error body."""
    return {"id": str(uuid.uuid4()), "message": problem.message}


def _texts(fields: CohereEmbedBody) -> list[str]:
    if fields.inputs is not None:
        if fields.texts is not None:
            raise InvalidOption("inputs", "does not go with texts")
        for i, each in enumerate(fields.inputs):
            for part in each.content:
                if part.type != "text":
                    raise BadRequest(f"inputs[{i}] has content of type {part.type!r}; only text is known", "inputs")
        return texts_of(["\n".join(part.text for part in each.content) for each in fields.inputs], "inputs")
    return texts_of(fields.texts or [], "texts")


def _meta(**units: int) -> CohereMeta:
    return {"api_version": {"version": "2"}, "billed_units": units}
