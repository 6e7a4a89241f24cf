"""OpenAI's embeddings, with more fields for those who ask: ours, Jina's and Voyage's, whose paths are the same.

A request that OpenAI's own client sends notices none of them.
"""

from collections.abc import Iterator
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from embellama.errors import EmptyInput, InvalidOption
from embellama.jobs import Job, Jobs
from embellama.options import ChunkOptions, EmbedOptions, OutputOptions, Truncate
from embellama.outputs import check_dtype, quantize
from embellama.results import Chunks, Embeddings
from embellama_server import api
from embellama_server.api import Encoding, Parser
from embellama_server.work import JSON, Endpoint, Problem, Reply, ReplyContext, Stream, Work

BINARY = "application/octet-stream"
LINES = "application/x-ndjson"


class TextInput(msgspec.Struct):
    """Jina's way to write a text."""

    text: str


# A text, texts, token ids, or lists of token ids: msgspec cannot tell lists apart, `api.items` does.
Input = str | list[str | int | list[int] | TextInput]


class EmbeddingsRequest(msgspec.Struct):
    """Body of ``POST /v1/embeddings``; fields it does not know are ignored, as OpenAI does."""

    model: str
    input: Input
    encoding_format: Literal["float", "base64"] | None = None  # None is float, as OpenAI's null
    dimensions: int | None = None
    user: str | None = None

    # How texts are read.
    truncate: bool | int | str | None = None  # none, end, start, a number of tokens; Jina's true is end
    truncation: bool | None = None  # Voyage's
    prompt_name: str | None = None
    input_type: str | None = None  # Voyage's: query, document
    task: str | None = None  # Jina's: retrieval.query, retrieval.passage, …
    late_chunking: bool | None = None  # the texts are parts of one, read as a whole
    # How vectors are written.
    output_dtype: str | list[str] | None = None
    embedding_type: str | list[str] | None = None  # Jina's
    output_dimension: int | None = None  # Voyage's
    normalized: bool | None = None  # Jina's
    return_truncated: bool | None = None  # say how many tokens of each text were left out


class Usage(TypedDict):
    """Tokens computed, the prompts' included."""

    prompt_tokens: int
    total_tokens: int


class Item(TypedDict):
    """A text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: api.Vector


class EmbeddingsAnswer(TypedDict):
    """Vectors in the texts' order."""

    object: Literal["list"]
    data: list[Item]
    model: str
    usage: Usage
    truncated: NotRequired[list[int]]


_parse = Parser(EmbeddingsRequest, encoding_format="'float' or 'base64'")


def embeddings(body: bytes, accept: str) -> Work:
    """Read ``POST /v1/embeddings``."""
    request = _parse(body)
    given, request.input = request.input, ""  # they must not outlive `ask`
    if isinstance(given, list):
        given = [item.text if isinstance(item, TextInput) else item for item in given]
    texts: Any = api.items(given)
    encoding = Encoding.of(
        request.output_dtype if request.output_dtype is not None else request.embedding_type,
        request.encoding_format == "base64",
        "output_dtype" if request.output_dtype is not None else "embedding_type",
    )
    dimensions = request.dimensions if request.dimensions is not None else request.output_dimension
    truncate = api.truncation(request.truncation if request.truncate is None else request.truncate)
    name = request.prompt_name or request.input_type or request.task

    def ask(jobs: Jobs) -> Job[Any]:
        check(jobs, encoding, request.normalized)
        prompt = api.prompt_of(jobs, name)
        if request.late_chunking:
            return _late_chunks(jobs, texts, prompt, truncate, dimensions)
        if isinstance(texts[0], str):
            return jobs.encode(texts, EmbedOptions(prompt=prompt, truncate=truncate, dimensions=dimensions))
        for option, value in (("truncate", truncate != "none"), ("prompt_name", prompt)):
            if value:
                raise InvalidOption(option, "does not go with token ids, which are used as they are")
        return jobs.encode_ids(texts, OutputOptions(dimensions=dimensions))

    def write(answer: Embeddings | Chunks, context: ReplyContext) -> Reply:
        if BINARY in accept:
            return _binary(answer, encoding, context)
        n_cut = answer.n_cut.tolist() if request.return_truncated and isinstance(answer, Embeddings) else None
        return Reply(_json(answer, encoding, request.model, context, n_cut))

    if LINES not in accept:
        return Work(request.model, sum(map(len, texts)), ask, write)
    if request.late_chunking:
        raise InvalidOption("late_chunking", f"does not go with {LINES}: its parts are read together")
    return Work(request.model, sum(map(len, texts)), ask, write, _lines(request, encoding))


def check(jobs: Jobs, encoding: Encoding, normalized: bool | None = None, param: str = "normalized") -> None:
    """Refuse what the model's vectors cannot be written as; raises `InvalidOption`."""
    config = jobs.config
    for dtype in encoding.dtypes.values():
        check_dtype(dtype, config.normalization, config.int8_limit)
    if normalized is not None and normalized != (config.normalization != "none"):
        raise InvalidOption(
            param, f"is {str(normalized).lower()}; this model is served with normalization {config.normalization}"
        )


class Refusal(api.Refusal):
    """OpenAI's error body, with the message once more where Jina's and Voyage's clients look for it."""

    detail: str


def refuse(problem: Problem) -> Refusal:
    """Make the error body."""
    return {**api.refuse(problem), "detail": problem.message}


def usage(n_tokens: int) -> Usage:
    """Count tokens as OpenAI does."""
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def _late_chunks(
    jobs: Jobs, texts: list[Any], prompt: str | None, truncate: Truncate, dimensions: int | None
) -> Job[Chunks]:
    """Read the texts as one, and ask for the vector of each of them in it (Jina's late chunking)."""
    if not isinstance(texts[0], str):
        raise InvalidOption("late_chunking", "takes texts, not token ids")
    for option, value in (("truncate", truncate != "none"), ("task", prompt)):
        if value:
            raise InvalidOption(option, "does not go with late_chunking")
    for index, text in enumerate(texts):
        if not text.strip():
            raise EmptyInput(index)
    whole, spans = "", []
    for text in texts:
        # Parts of a text that was cut between words need no space; others do.
        if whole and not whole[-1].isspace() and not text[0].isspace():
            whole += " "
        spans.append((len(whole), len(whole) + len(text)))
        whole += text
    return jobs.chunks(whole, ChunkOptions(character_spans=spans, dimensions=dimensions))


def _item(index: int, row: Any) -> Item:
    return {"object": "embedding", "index": index, "embedding": row}


def _json(
    answer: Embeddings | Chunks, encoding: Encoding, model: str, context: ReplyContext, n_cut: Any
) -> Iterator[bytes]:
    yield b'{"object":"list","data":['
    yield from api.listed(answer.vectors, encoding, context, _item)
    rest = {"model": model, "usage": usage(context.n_tokens)}
    if n_cut is not None:
        rest["truncated"] = n_cut
    yield b"]," + api.dumps(rest)[1:]


def _binary(answer: Embeddings | Chunks, encoding: Encoding, context: ReplyContext) -> Reply:
    """Write rows as they are in memory; shape and dtype are in the headers."""
    if encoding.several:
        raise InvalidOption("output_dtype", f"names several; an answer of {BINARY} has one")
    [dtype] = encoding.dtypes.values()
    rows = api.little_endian(quantize(answer.vectors, dtype, context.config.int8_limit))
    shape = ",".join(map(str, rows.shape))
    headers = {"x-embedding-shape": shape, "x-embedding-dtype": rows.dtype.name, "x-embedding-format": dtype}
    step = api.ROWS_A_PIECE
    pieces = (rows[start : start + step].tobytes() for start in range(0, len(rows), step))
    return Reply(pieces, BINARY, headers)


def _lines(request: EmbeddingsRequest, encoding: Encoding) -> Stream:
    def rows(answer: Embeddings, first: int, context: ReplyContext) -> bytes:
        values = encoding.rows(answer.vectors, context.config.int8_limit)
        return b"".join(api.dumps(_item(first + i, value)) + b"\n" for i, value in enumerate(values))

    def end(context: ReplyContext) -> bytes:
        return api.dumps({"object": "list", "model": request.model, "usage": usage(context.n_tokens)}) + b"\n"

    return Stream(LINES, rows, end)


ENDPOINTS = [
    Endpoint(
        path,
        EmbeddingsRequest,
        embeddings,
        refuse,
        "Vectors of texts, as OpenAI defines it; bytes, or a line of JSON for each vector, where `accept` names them.",
        {JSON: EmbeddingsAnswer, BINARY: None, LINES: None},
        {"input": ["A cat sleeps.", "Two dogs run."]},
    )
    for path in ("/v1/embeddings", "/embeddings")
]
