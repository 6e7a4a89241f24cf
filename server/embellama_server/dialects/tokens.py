"""Texts to token ids and back: ``/tokenize`` and ``/decode`` as text-embeddings-inference has them, ``/detokenize``.

Nothing is computed: these jobs have no texts for a worker, and their result is the body of the reply, in pieces.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, TypedDict

import msgspec

from embellama.errors import EmptyInput, InvalidText, InvalidToken
from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama_server.dialects.base import Dialect, ParsedRequest
from embellama_server.dialects.bodies import BodyParser, inputs_of, named, texts_of, with_prompt_of
from embellama_server.dialects.tei import TEIErrorBody, tei_error
from embellama_server.problems import OpenAIErrorBody, Problem, openai_error
from embellama_server.reply import JSON, Reply, ReplyContext, dumps

# 2,000 tokens take orjson about 1 ms, in which no other thread runs.
TOKENS_A_PIECE = 2000


class TokenizeBody(msgspec.Struct):
    """Body of ``POST /tokenize``."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None  # true by default
    prompt_name: str | None = None
    model: str | None = None


class DecodeBody(msgspec.Struct):
    """Body of ``POST /decode``."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None  # true by default
    model: str | None = None


class DetokenizeBody(msgspec.Struct):
    """Body of ``POST /detokenize``."""

    tokens: list[int]
    model: str | None = None


class TokenDescription(TypedDict):
    """A token, and the characters of the text it is of."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DetokenizeAnswer(TypedDict):
    """The text."""

    content: str


class TokensRequest(ParsedRequest, kw_only=True):
    """What is asked of a tokenizer.

    Attributes:
        special: Whether special tokens are included.
    """

    special: bool
    computes: bool = False


class TokensDialect(Dialect[TokensRequest, list[bytes]]):
    """A request to a tokenizer; subclasses write the reply's body where the tokenizing is done, in `write`."""

    def job(self, request: TokensRequest, jobs: Jobs) -> Job[list[bytes]]:
        pieces = list(self.write(request, jobs))  # here, for it may take a while
        prompt = with_prompt_of(jobs, request.options).prompt
        return Job([], lambda _: pieces, prompts=(jobs.prompts[prompt],) if prompt else ())

    @abstractmethod
    def write(self, request: TokensRequest, jobs: Jobs) -> Iterator[bytes]:
        """Write the reply's body, in pieces."""

    def reply(self, _: TokensRequest, result: list[bytes], __: ReplyContext) -> Reply:
        return Reply(iter(result))


class Tokenize(TokensDialect):
    """The tokens of texts."""

    paths = ("/tokenize",)
    body_type = TokenizeBody
    error_body = TEIErrorBody
    answers = {JSON: list[list[TokenDescription]]}
    operation = "tokenize"
    about = "The tokens of texts."
    example = {"inputs": "A cat sleeps."}
    _body = BodyParser(TokenizeBody)

    def parse(self, body: bytes, _: str) -> TokensRequest:
        fields = self._body(body)
        return TokensRequest(
            inputs=texts_of(fields.inputs, "inputs"),
            model=fields.model,
            options=EmbedOptions(prompt=fields.prompt_name),
            sent_as={"input": named("inputs", fields.inputs)},
            special=fields.add_special_tokens is not False,
        )

    def write(self, request: TokensRequest, jobs: Jobs) -> Iterator[bytes]:
        texts = request.inputs
        if prompt := with_prompt_of(jobs, request.options).prompt:
            texts = jobs.prompts.apply(prompt, texts)
        for i, text in enumerate(texts):
            yield b",[" if i else b"[["
            with _naming(i):
                found = jobs.tokenizer.pieces(text, special=request.special)
            for start in range(0, len(found), TOKENS_A_PIECE):
                items = dumps([piece._asdict() for piece in found[start : start + TOKENS_A_PIECE]])
                yield (b"," if start else b"") + items[1:-1]
            yield b"]"
        yield b"]"

    def refuse(self, problem: Problem) -> TEIErrorBody:
        return tei_error(problem)


class Decode(TokensDialect):
    """Texts of lists of token ids."""

    paths = ("/decode",)
    body_type = DecodeBody
    error_body = TEIErrorBody
    answers = {JSON: list[str]}
    operation = "detokenize"
    about = "Texts of token ids."
    example = {"ids": [[5, 6]]}
    _body = BodyParser(DecodeBody)

    def parse(self, body: bytes, _: str) -> TokensRequest:
        fields = self._body(body)
        ids: Any = inputs_of(fields.ids, "ids")
        return TokensRequest(
            inputs=ids,
            model=fields.model,
            sent_as={"input": named("ids", fields.ids)},
            special=fields.skip_special_tokens is False,
        )

    def write(self, request: TokensRequest, jobs: Jobs) -> Iterator[bytes]:
        texts = []
        for i, ids in enumerate(request.inputs):
            with _naming(i):
                texts.append(jobs.tokenizer.decode(ids, special=request.special))
        yield dumps(texts)

    def refuse(self, problem: Problem) -> TEIErrorBody:
        return tei_error(problem)


class Detokenize(TokensDialect):
    """The text of token ids, as llama-server has it too."""

    paths = ("/detokenize",)
    body_type = DetokenizeBody
    error_body = OpenAIErrorBody
    answers = {JSON: DetokenizeAnswer}
    operation = "detokenize"
    about = "The text of token ids."
    example = {"tokens": [5, 6]}
    _body = BodyParser(DetokenizeBody)

    def parse(self, body: bytes, _: str) -> TokensRequest:
        fields = self._body(body)
        return TokensRequest(inputs=[fields.tokens], model=fields.model, sent_as={"input": "tokens"}, special=False)

    def write(self, request: TokensRequest, jobs: Jobs) -> Iterator[bytes]:
        yield dumps({"content": jobs.tokenizer.decode(request.inputs[0], special=request.special)})

    def refuse(self, problem: Problem) -> OpenAIErrorBody:
        return openai_error(problem)


@contextlib.contextmanager
def _naming(index: int) -> Iterator[None]:
    """Let an error of a tokenizer that was given one text name it by its position among several."""
    try:
        yield
    except (EmptyInput, InvalidText, InvalidToken) as error:
        raise type(error)(index, *error.args[1:]) from None
