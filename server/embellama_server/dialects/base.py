"""A dialect: what one kind of client sends and expects, in named methods; `DIALECTS` in `dialects/__init__` lists them.

body ── Dialect.parse ──► ParsedRequest ── Dialect.job ──► Job ── computed ──► result ── Dialect.reply ──► Reply
                                                     any error ──► Problem ── Dialect.refuse ──► an error body
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from embellama.jobs import Job, Jobs
from embellama.options import EmbedOptions
from embellama.results import Embeddings
from embellama_server.problems import Problem, TooManyTokens
from embellama_server.reply import Reply, ReplyContext

# The operation of dialects that answer with vectors of texts.
EMBEDDINGS = "embeddings"


class ParsedRequest(msgspec.Struct, kw_only=True):
    """What a request asks for. Dialects add what their `job` and `reply` need.

    Attributes:
        inputs: Texts, or lists of token ids. They are let go once there is a job, so that a request that waits for a
            worker holds token ids only; what a reply repeats, a dialect keeps in a field of its own.
        model: The model asked for; None is the first one.
        options: How texts are read; `prompt` is the client's word for it until `Dialect.job` finds the model's.
        computes: Whether a worker computes anything. A request that is only tokenized may have as many characters, or
            token ids, as another may have tokens: it waits in no queue that would bound it otherwise.
        sent_as: The client's names for fields that errors call ``input``, ``prompt_name``, ``dimensions`` and so on:
            ``{"dimensions": "output_dimension"}``. One that is a list ends in ``[]``, so that its items are named; an
            item that was a field of its own has a key: ``{"input": "sentences[]", "input[2]": "source_sentence"}``.
        streams: Whether the reply is sent a few rows at a time, by `Dialect.stream_rows` and `stream_end`.
    """

    inputs: Sequence[Any]
    model: str | None = None
    options: EmbedOptions = EmbedOptions()
    sent_as: Mapping[str, str] = {}
    computes: bool = True
    streams: bool = False

    @property
    def n_characters(self) -> int:
        """Characters of all texts, or token ids: what tokenizing them costs. 0 once they were let go."""
        return sum(map(len, self.inputs))

    @property
    def formats(self) -> tuple[str, ...]:
        """How the client asked for vectors to be written, in its words; empty where it cannot say."""
        return ()


RequestT = TypeVar("RequestT", bound=ParsedRequest)
ResultT = TypeVar("ResultT")


def check_tokens(job: Job[Any], limit: int) -> None:
    """Raise `TooManyTokens` if the texts of a request's job have more than `limit`."""
    n_tokens = sum(map(len, job.tokens))
    if n_tokens > limit:
        raise TooManyTokens(
            f"the request has {n_tokens} tokens in {len(job.tokens)} texts; the limit is {limit} for one request",
            "input",
        )


class Dialect(ABC, Generic[RequestT, ResultT]):
    """One kind of request in one API's words: its body, its reply, its errors.

    Attributes:
        paths: Where it is asked for.
        body_type: Type of a request's body.
        answers: Content types of a good reply, and the type of its body; None for one that is no JSON.
        error_body: Type of an error's body.
        about: What it gives, in a line.
        operation: What it does, in a word, as traces name it.
        example: A body, but for its `model`.
        stream_type: Content type of a reply that is streamed.
    """

    paths: ClassVar[tuple[str, ...]]
    body_type: ClassVar[type[msgspec.Struct]]
    answers: ClassVar[Mapping[str, Any]]
    error_body: ClassVar[Any]
    about: ClassVar[str]
    operation: ClassVar[str] = EMBEDDINGS
    example: ClassVar[Mapping[str, Any]]
    stream_type: ClassVar[str] = ""

    @abstractmethod
    def parse(self, body: bytes, accept: str) -> RequestT:
        """Read a request's body and what content types the client accepts; raises `InputError` for what is wrong."""

    @abstractmethod
    def job(self, request: RequestT, jobs: Jobs) -> Job[ResultT]:
        """Make the job that computes a request, or raise what is wrong with it; may run in another thread."""

    @abstractmethod
    def reply(self, request: RequestT, result: ResultT, context: ReplyContext) -> Reply:
        """Write the reply that gives a job's result."""

    @abstractmethod
    def refuse(self, problem: Problem) -> Any:
        """Make the body of a reply that tells of an error; its type is `error_body`."""

    def stream_rows(self, request: RequestT, result: Embeddings, first: int, context: ReplyContext) -> bytes:
        """Write a part of a streamed reply: some rows, the index of the first being `first`."""
        raise NotImplementedError

    def stream_end(self, request: RequestT, context: ReplyContext) -> bytes:
        """Write what comes after the last row of a streamed reply."""
        raise NotImplementedError
