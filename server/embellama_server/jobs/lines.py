"""The lines of a batch's file: what each asks for, and what is wrong with it before anything is computed.

a file ── lines_from ──► NumberedLine ── LineCheck.add ──► how many, the model, errors with line numbers
                                     └── request_line ──► RequestLine: its body as a live request would send it
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from embellama.bulk.files import Lines
from embellama.bulk.rows import RowTooLong
from embellama_server.jobs.records import LineError

# OpenAI's limits.
MAX_LINES = 50_000
MAX_FILE_BYTES = 200_000_000

# Characters of a custom_id. All of them are compared with each other, by their hashes.
MAX_ID_CHARACTERS = 512

# Errors of one batch that are told; more would be read by nobody, and kept for all.
MAX_ERRORS = 100


class RequestLine(msgspec.Struct):
    """One line of a batch's file."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    """What is read of a body before its turn comes."""

    model: str | None = None


class NumberedLine(NamedTuple):
    """A line that is not blank.

    content: Its bytes, or that they are too many.
    number: Its number, from 1; blank lines count.
    end: The byte after it.
    """

    content: bytes | RowTooLong
    number: int
    end: int


_line = msgspec.json.Decoder(RequestLine)
_body = msgspec.json.Decoder(_Body)


def lines_from(path: Path, at: int = 0, number: int = 0) -> Iterator[NumberedLine]:
    """Read the lines after byte `at`, before which there are `number`."""
    with open(path, "rb") as stream:
        stream.seek(at)
        lines = Lines(stream, at)
        for content in lines:
            number += 1
            if isinstance(content, RowTooLong) or content.strip():
                yield NumberedLine(content, number, lines.at)


def request_line(content: bytes) -> RequestLine:
    """Read a line that was checked."""
    return _line.decode(content)


class LineCheck:
    """Checks all lines of a file, one after another.

    Attributes:
        total: Lines so far.
        model: The model that they ask for; None for the first that is served.
        errors: What is wrong; of many errors, the first ones.
    """

    def __init__(self, endpoint: str):
        self._endpoint = endpoint
        self._ids: dict[bytes, int] = {}  # hashes, and their lines
        self.total = 0
        self.model: str | None = None
        self._model_line = 0  # the line that says so; 0 before there is one
        self.errors: list[LineError] = []

    @property
    def is_hopeless(self) -> bool:
        """Whether there is no need to read on."""
        return len(self.errors) >= MAX_ERRORS or self.total > MAX_LINES

    def add(self, line: NumberedLine) -> None:
        """Check one more line."""
        self.total += 1
        if self.total > MAX_LINES:
            self._fail("too_many_lines", f"the file has more lines than {MAX_LINES}, the most allowed", None, None)
        elif isinstance(line.content, RowTooLong):
            self._fail("invalid_json_line", f"the line is too long: {line.content}", None, line.number)
        else:
            self._check(line.content, line.number)

    def end(self) -> None:
        """Take note that there are no more."""
        if not self.total:
            self._fail("empty_file", "the file has no line", None, None)

    def _check(self, content: bytes, number: int) -> None:
        try:
            read = _line.decode(content)
            model = _body.decode(read.body).model
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at `$.")
            field = where.rstrip("`") or reason.partition("field `")[2].partition("`")[0] or None
            self._fail("invalid_request", str(error), field, number)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail("invalid_json_line", f"the line is not JSON: {error}", None, number)
        else:
            self._compare(read, model, number)

    def _compare(self, read: RequestLine, model: str | None, number: int) -> None:
        """Check a line beside the batch and the lines before it."""
        if not 0 < len(read.custom_id) <= MAX_ID_CHARACTERS:
            says = f"custom_id has {len(read.custom_id)} characters; it must have 1 to {MAX_ID_CHARACTERS}"
            self._fail("invalid_custom_id", says, "custom_id", number)
            return
        first = self._ids.setdefault(hashlib.sha256(read.custom_id.encode()).digest()[:16], number)
        if first != number:
            says = f"custom_id {read.custom_id!r} is that of line {first}, too"
            self._fail("duplicate_custom_id", says, "custom_id", number)
        if read.method != "POST":
            self._fail("invalid_method", f"method is {read.method[:20]!r}; it must be 'POST'", "method", number)
        if read.url != self._endpoint:
            says = f"url is {read.url[:100]!r}; the batch's endpoint is {self._endpoint!r}"
            self._fail("invalid_url", says, "url", number)
        if not self._model_line:
            self.model, self._model_line = model, number
        elif model != self.model:
            says = f"model is {_shown(model)}; line {self._model_line} has {_shown(self.model)}"
            self._fail("mismatched_model", says, "body.model", number)

    def _fail(self, code: str, message: str, param: str | None, line: int | None) -> None:
        if len(self.errors) < MAX_ERRORS:
            self.errors.append({"code": code, "message": message, "param": param, "line": line})


def _shown(model: str | None) -> str:
    return "none" if model is None else repr(model[:100])
