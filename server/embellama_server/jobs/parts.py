"""`Part`: lines of a batch that are computed and written together.

lines ── read_part: Dialect.parse, Dialect.job ──► Part ── packed ──► batches of texts ── a back end ──► rows
                                                                                                     │
              output and error lines ◄── Dialect.reply ◄── Job.finish ◄── written ◄──────────────────╯

A live request's own code reads each body and writes each answer. Where a part begins decides alone where it ends, and
its texts which of them are computed together: so a batch that goes on after any end writes the same bytes.
"""

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from embellama.batch import RowKind, Rows, Tokens
from embellama.bulk.rows import RowTooLong
from embellama.deadline import Deadline, working_until
from embellama.errors import EmbeddingFailed, EmbellamaError
from embellama.jobs import Job
from embellama.text.prompt import identities
from embellama_server.dialects.base import Dialect, ParsedRequest, check_tokens
from embellama_server.jobs.lines import NumberedLine, request_line
from embellama_server.jobs.records import LineError
from embellama_server.problems import Problem, as_sent, problem_of
from embellama_server.reply import JSON, ReplyContext, dumps
from embellama_server.state import ServedModel

# A part ends with so many lines, bytes of them, texts or tokens, whatever comes first. At most two parts are computed
# again after an end; smaller ones have more crumbs of batches, and wait for the disk more often. A line may have more.
PART_LINES = 256
PART_BYTES = 4 * 1024 * 1024
PART_TEXTS = 1024
PART_TOKENS = 16_384

# Lines of which at once it is written that their turn did not come.
UNDONE_LINES = 1000

Outcome = Rows | EmbellamaError


class ReadLine(NamedTuple):
    """A line that was read: what it asks for, and its texts among those of its part.

    id: Of the line's answer; made of the line, so that it is the same whenever it is computed.
    error: Why there is nothing to compute, if so.
    """

    number: int
    id: str
    custom_id: str
    request: ParsedRequest | None
    job: Job[Any] | None
    places: list[int]
    error: Exception | None


class Texts:
    """The texts of a part, equal ones once.

    Attributes:
        tokens: Token ids of each.
        kinds: The kind of row that each is computed for.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[RowKind, bytes], int] = {}
        self.tokens: list[Tokens] = []
        self.kinds: list[RowKind] = []

    def add(self, tokens: Tokens, kind: RowKind) -> int:
        """Return the place of a text."""
        place = self._places.setdefault((kind, tokens.tobytes()), len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(tokens)
            self.kinds.append(kind)
        return place

    def packed(self, max_tokens: int, max_texts: int) -> Iterator[tuple[RowKind, list[int]]]:
        """Group the places of texts of one kind into batches, alike in length; a text that is too long is alone."""
        for kind in sorted(set(self.kinds)):
            batch: list[int] = []
            n_tokens = 0
            places = [place for place, each in enumerate(self.kinds) if each == kind]
            for place in sorted(places, key=lambda place: len(self.tokens[place])):
                n = len(self.tokens[place])
                if batch and (n_tokens + n > max_tokens or len(batch) == max_texts):
                    yield kind, batch
                    batch, n_tokens = [], 0
                batch.append(place)
                n_tokens += n
            if batch:
                yield kind, batch


class Part(NamedTuple):
    """Lines that are computed and written together, and the place after them."""

    lines: list[ReadLine]
    texts: Texts
    at: int
    number: int


class WrittenPart(NamedTuple):
    """What a part adds to the output, and to the errors."""

    output: bytes
    errors: bytes
    n_completed: int
    n_failed: int
    n_tokens: int


def read_part(
    lines: Iterator[NumberedLine], dialect: Dialect[Any, Any], model: ServedModel, work: Deadline
) -> Part | None:
    """Read the next part; None if there are no more lines.

    Args:
        work: Put off for each line; set to 0 by who needs the part no more.
    """
    read: list[ReadLine] = []
    texts = Texts()
    n_bytes = n_texts = n_tokens = at = number = 0
    for line in lines:
        content, number, at = line
        if work.at:
            work.at = time.monotonic() + model.config.timeout_ms / 1000
        with working_until(work):
            found = _read_line(line, texts, dialect, model)
        read.append(found)
        n_bytes += len(bytes(content))  # type: ignore[arg-type]
        n_texts += len(found.places)
        n_tokens += sum(len(texts.tokens[place]) for place in found.places)
        if len(read) >= PART_LINES or n_bytes >= PART_BYTES or n_texts >= PART_TEXTS or n_tokens >= PART_TOKENS:
            break
    return Part(read, texts, at, number) if read else None


def _id_of(line: NumberedLine) -> str:
    """Make the id of a line's answer."""
    return hashlib.sha256(b"%d %b" % (line.number, bytes(line.content).strip())).hexdigest()[:24]  # type: ignore[arg-type]


def _read_line(line: NumberedLine, texts: Texts, dialect: Dialect[Any, Any], model: ServedModel) -> ReadLine:
    content, number, _ = line
    assert not isinstance(content, RowTooLong)  # the file was checked
    asked = request_line(content)
    id = _id_of(line)
    request: ParsedRequest | None = None
    try:
        request = dialect.parse(bytes(asked.body), JSON)
        job = dialect.job(request, model.jobs)
        check_tokens(job, model.config.max_request_tokens)
    except EmbellamaError as error:
        if request:
            request.inputs = ()
        return ReadLine(number, id, asked.custom_id, request, None, [], error)
    request.inputs = ()  # their tokens are enough
    places = [texts.add(text, job.kind) for text in job.tokens]
    return ReadLine(number, id, asked.custom_id, request, job._replace(tokens=()), places, None)


def written(part: Part, outcomes: Sequence[Outcome], dialect: Dialect[Any, Any], model: ServedModel) -> WrittenPart:
    """Write the lines of a part, given the rows, or the error, of each of its texts."""
    output, errors = bytearray(), bytearray()
    n_completed = n_tokens = 0
    for line in part.lines:
        try:
            body, n_line_tokens = _answer(line, part.texts, outcomes, dialect, model)
        except EmbellamaError as error:
            errors += _error_line(line, error, dialect)
            continue
        n_completed += 1
        n_tokens += n_line_tokens
        output += _line(line, 200, body) + b"}\n"
    return WrittenPart(bytes(output), bytes(errors), n_completed, len(part.lines) - n_completed, n_tokens)


def _answer(
    line: ReadLine, texts: Texts, outcomes: Sequence[Outcome], dialect: Dialect[Any, Any], model: ServedModel
) -> tuple[bytes, int]:
    """Return the body that answers a line, and its tokens; raises what is wrong with it."""
    if line.error:
        raise line.error
    assert line.job
    assert line.request
    rows: list[Rows] = []
    for position, place in enumerate(line.places):
        outcome = outcomes[place]
        if isinstance(outcome, EmbeddingFailed):
            raise line.job.named(EmbeddingFailed(position, outcome.reason))
        if isinstance(outcome, Exception):
            raise outcome
        rows.append(outcome)
    n_tokens = sum(len(texts.tokens[place]) for place in line.places)
    result = line.job.finish(np.concatenate(rows) if rows else np.empty((0, 0), np.float32))
    reply = dialect.reply(line.request, result, ReplyContext(model.info, model.config, n_tokens, 0.0))
    return b"".join(reply.pieces), n_tokens


def _error_line(line: ReadLine, error: Exception, dialect: Dialect[Any, Any]) -> bytes:
    problem: Problem = problem_of(error)[0]
    if line.request:
        problem = as_sent(problem, line.request.sent_as)
    return _line(line, problem.status, dumps(dialect.refuse(problem))) + b',"line":%d}\n' % line.number


def _line(line: ReadLine, status: int, body: bytes) -> bytes:
    """Write a line but for its end; a live request's answer has the prompt in a header."""
    prompt = b""
    if line.job and line.job.prompts:
        prompt = b',"prompt":%b' % dumps(identities(line.job.prompts))
    return (
        b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":"req_%b"%b,"body":%b},"error":null'
        % (line.id.encode(), dumps(line.custom_id), status, line.id.encode(), prompt, body)
    )


def undone_lines(lines: Iterator[NumberedLine], error: LineError) -> tuple[WrittenPart, int, int] | None:
    """Write the error lines of lines whose turn did not come; with the place after them, or None if there are none."""
    some = list(itertools.islice(lines, UNDONE_LINES))
    if not some:
        return None
    errors = b"".join(_undone_line(line, error) for line in some)
    return WrittenPart(b"", errors, 0, len(some), 0), some[-1].end, some[-1].number


def _undone_line(line: NumberedLine, error: LineError) -> bytes:
    assert not isinstance(line.content, RowTooLong)
    told = {
        "id": f"batch_req_{_id_of(line)}",
        "custom_id": request_line(line.content).custom_id,
        "response": None,
        "error": {"code": error["code"], "message": error["message"]},
        "line": line.number,
    }
    return dumps(told) + b"\n"
