"""OpenAI's embeddings, with more fields for those who ask: ours, Jina's and Voyage's, whose paths are the same.

A request that OpenAI's own client sends notices none of them.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NotRequired, TypedDict

import msgspec

from embellama.errors import InvalidOption
from embellama.jobs import Job, Jobs
from embellama.options import ChunkOptions, EmbedOptions
from embellama.outputs import quantize
from embellama.results import Chunks, Embeddings
from embellama_server.accept import best_type
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import (
    BodyParser,
    TextObject,
    inputs_of,
    named,
    one_of,
    refuse_text_options,
    truncation_of,
    with_prompt_of,
    without_task,
)
from embellama_server.dialects.vectors import (
    ROWS_A_PIECE,
    EncodedVector,
    Encoding,
    check_encoding,
    json_items,
    little_endian,
)
from embellama_server.problems import BadRequest, OpenAIErrorBody, Problem, openai_error
from embellama_server.reply import JSON, Reply, ReplyContext, dumps

BINARY = "application/octet-stream"

# Jina's tasks that no prompt is known for, but where a model has one of that name.
JINA_TASKS = ("text-matching", "classification", "separation", "clustering")
NDJSON = "application/x-ndjson"


class OpenAIEmbeddingsBody(msgspec.Struct):
    """Body of ``POST /v1/embeddings``; fields it does not know are ignored, as OpenAI does."""

    model: str
    # A text, texts, token ids, or lists of token ids: msgspec cannot tell lists apart, `inputs_of` does.
    input: str | list[str | int | list[int] | TextObject]
    encoding_format: Literal["float", "base64"] | None = None  # None is float, as OpenAI's null
    dimensions: int | None = None
    user: str | None = None  # whom OpenAI would block; nobody here

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
    normalize: bool | None = None  # vLLM's
    return_truncated: bool | None = None  # say how many tokens of each text were left out, and computed


class OpenAIUsage(TypedDict):
    """Tokens computed, the prompts' included."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbedding(TypedDict):
    """A text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: EncodedVector


class OpenAIEmbeddingsAnswer(TypedDict):
    """Vectors in the texts' order."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage
    truncated: NotRequired[list[int]]
    n_tokens: NotRequired[list[int]]


class DetailedErrorBody(OpenAIErrorBody):
    """OpenAI's error body, with the message once more where Jina's and Voyage's clients look for it."""

    detail: str


def detailed_error(problem: Problem) -> DetailedErrorBody:
    """Make OpenAI's error body for Jina's and Voyage's clients too."""
    return {**openai_error(problem), "detail": problem.message}


class OpenAIEmbeddingsRequest(ParsedRequest, kw_only=True):
    """What ``POST /v1/embeddings`` asks for.

    Attributes:
        model: The name as the client wrote it, which the reply repeats.
        encoding: How vectors are written.
        late_chunking: Whether the texts are parts of one.
        return_truncated: Whether the reply says how many tokens were left out.
        binary: Whether the reply is the rows' bytes rather than JSON.
    """

    model: str
    encoding: Encoding
    late_chunking: bool | None
    return_truncated: bool | None
    binary: bool

    @property
    def formats(self) -> tuple[str, ...]:
        return self.encoding.formats


class OpenAIEmbeddings(Dialect[OpenAIEmbeddingsRequest, Embeddings | Chunks]):
    """Vectors of texts."""

    paths: ClassVar[tuple[str, ...]] = ("/v1/embeddings", "/embeddings", "/openai/v1/embeddings")
    body_type: ClassVar[type[OpenAIEmbeddingsBody]] = OpenAIEmbeddingsBody
    error_body = DetailedErrorBody
    answers = {JSON: OpenAIEmbeddingsAnswer, BINARY: None, NDJSON: None}
    about = (
        "Vectors of texts, as OpenAI defines it; bytes, or a line of JSON for each vector, where `accept` names them."
    )
    example = {"input": ["A cat sleeps.", "Two dogs run."]}
    stream_type = NDJSON
    _body = BodyParser(OpenAIEmbeddingsBody, encoding_format="'float' or 'base64'")

    def parse(self, body: bytes, accept: str) -> OpenAIEmbeddingsRequest:
        fields = self._body(body)
        given = fields.input
        if isinstance(given, list):
            given = [item.text if isinstance(item, TextObject) else item for item in given]
        inputs = inputs_of(given)
        dtype_field, dtype = one_of(("output_dtype", fields.output_dtype), ("embedding_type", fields.embedding_type))
        encoding = Encoding.of(dtype, fields.encoding_format == "base64", dtype_field)
        if encoding.as_base64 and fields.encoding_format == "float":
            raise InvalidOption(dtype_field, "has base64, which contradicts encoding_format; give one of them")
        dimensions_field, dimensions = one_of(
            ("dimensions", fields.dimensions), ("output_dimension", fields.output_dimension)
        )
        truncate_field, truncate = truncation_of(fields.truncate, fields.truncation)
        prompt_field, prompt = one_of(
            ("prompt_name", fields.prompt_name or None),
            ("input_type", fields.input_type or None),
            ("task", fields.task or None),
        )
        _, normalize = one_of(("normalized", fields.normalized), ("normalize", fields.normalize))
        options = EmbedOptions(dimensions=dimensions, truncate=truncate, prompt=prompt, normalize=normalize)
        content_type = best_type(accept, (JSON, NDJSON, BINARY))
        if content_type == BINARY and encoding.several:
            raise InvalidOption(dtype_field, f"is a list; an answer of {BINARY} has one dtype, named by itself")
        streams = content_type == NDJSON
        if fields.return_truncated and (content_type != JSON or fields.late_chunking):
            where = "late_chunking" if fields.late_chunking else content_type
            raise InvalidOption("return_truncated", f"does not go with {where}, whose answer has no place for it")
        if streams and fields.late_chunking:
            raise InvalidOption("late_chunking", f"does not go with {NDJSON}: its parts are read together")
        sent_as = {
            "input": named("input", given),
            "dimensions": dimensions_field,
            "truncate": truncate_field,
            "prompt_name": prompt_field,
            "dtype": dtype_field,
        }
        if fields.late_chunking:
            for index, text in enumerate(inputs):
                if isinstance(text, str) and not text.strip():
                    raise BadRequest(f"input[{index}] is empty", "input", index)
            sent_as["input[0]"] = "input"  # the texts are one
        return OpenAIEmbeddingsRequest(
            inputs=inputs,
            model=fields.model,
            options=options,
            streams=streams,
            sent_as=sent_as,
            encoding=encoding,
            late_chunking=fields.late_chunking,
            return_truncated=fields.return_truncated,
            binary=content_type == BINARY,
        )

    def job(self, request: OpenAIEmbeddingsRequest, jobs: Jobs) -> Job[Any]:
        check_encoding(jobs, request.encoding, request.options.normalize)
        options = request.options
        if request.sent_as["prompt_name"] == "task":
            options = without_task(jobs, options, JINA_TASKS)
        options = with_prompt_of(jobs, options)
        if request.late_chunking:
            return _late_chunks(jobs, request.inputs, options)
        if isinstance(request.inputs[0], str):
            return jobs.encode(request.inputs, options)
        refuse_text_options(options)
        return jobs.encode_ids(request.inputs, options)

    def reply(self, request: OpenAIEmbeddingsRequest, result: Embeddings | Chunks, context: ReplyContext) -> Reply:
        if request.binary:
            return _binary(result, request.encoding, context)
        return Reply(self._json(request, result, context))

    def _json(
        self, request: OpenAIEmbeddingsRequest, result: Embeddings | Chunks, context: ReplyContext
    ) -> Iterator[bytes]:
        yield b'{"object":"list","data":['
        yield from json_items(result.vectors, request.encoding, context, _item)
        rest = {"model": request.model, "usage": usage(context.n_tokens)}
        if request.return_truncated and isinstance(result, Embeddings):
            rest |= {"truncated": result.n_cut.tolist(), "n_tokens": result.n_tokens.tolist()}
        yield b"]," + dumps(rest)[1:]

    def stream_rows(
        self, request: OpenAIEmbeddingsRequest, result: Embeddings, first: int, context: ReplyContext
    ) -> bytes:
        values = request.encoding.rows(result.vectors, context.config.int8_limit)
        return b"".join(dumps(_item(first + i, value)) + b"\n" for i, value in enumerate(values))

    def stream_end(self, request: OpenAIEmbeddingsRequest, context: ReplyContext) -> bytes:
        return dumps({"object": "list", "model": request.model, "usage": usage(context.n_tokens)}) + b"\n"

    def refuse(self, problem: Problem) -> DetailedErrorBody:
        return detailed_error(problem)


def usage(n_tokens: int) -> OpenAIUsage:
    """Count tokens as OpenAI does."""
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def _item(index: int, value: Any) -> OpenAIEmbedding:
    return {"object": "embedding", "index": index, "embedding": value}


def _binary(result: Embeddings | Chunks, encoding: Encoding, context: ReplyContext) -> Reply:
    """Write rows as they are in memory; shape and dtype are in the headers."""
    [dtype] = encoding.dtypes.values()
    rows = little_endian(quantize(result.vectors, dtype, context.config.int8_limit))
    shape = ",".join(map(str, rows.shape))
    headers = {"x-embedding-shape": shape, "x-embedding-dtype": rows.dtype.name, "x-embedding-format": dtype}
    pieces = (rows[start : start + ROWS_A_PIECE].tobytes() for start in range(0, len(rows), ROWS_A_PIECE))
    return Reply(pieces, BINARY, headers)


def _late_chunks(jobs: Jobs, texts: Any, options: EmbedOptions) -> Job[Chunks]:
    """Read the texts as one, and ask for the vector of each of them in it (Jina's late chunking)."""
    if not isinstance(texts[0], str):
        raise InvalidOption("late_chunking", "takes texts, not token ids")
    if options.truncate != "none":
        raise InvalidOption("truncate", "does not go with late_chunking")
    # A prompt goes around the whole, as it goes around a text; no part's vector is of it.
    prompt = jobs.prompts[options.prompt] if options.prompt else None
    before, after = prompt.around({}) if prompt else ("", "")
    whole, spans = before, list[tuple[int, int]]()
    for text in texts:
        # Parts of a text that was cut between words need no space; others do.
        if spans and not whole[-1].isspace() and not text[0].isspace():
            whole += " "
        spans.append((len(whole), len(whole) + len(text)))
        whole += text
    job = jobs.chunks(
        whole + after, ChunkOptions(character_spans=spans, normalize=options.normalize, dimensions=options.dimensions)
    )
    return job._replace(prompts=(prompt,)) if prompt else job
