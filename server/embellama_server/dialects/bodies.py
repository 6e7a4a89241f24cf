"""Bodies of requests: JSON decoded and checked, and the fields that several dialects have in common.

bytes ── BodyParser ──► a dialect's body type ── inputs_of, texts_of, truncation ──► texts, EmbedOptions
"""

import contextlib
import json
from collections.abc import Collection, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from embellama.errors import InvalidOption
from embellama.jobs import Jobs
from embellama.options import EmbedOptions, Truncate
from embellama_server.problems import BadRequest

MAX_INPUTS = 2048  # OpenAI's limit

Body = TypeVar("Body")

# What decoding raises for a body that is not JSON.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class BodyParser(Generic[Body]):
    """Decodes bodies of one type, and names the field at fault in those that are wrong."""

    def __init__(self, body_type: type[Body], **allowed: str):
        """Prepare to decode `body_type`; `allowed` says for a field what its values may be, for messages."""
        self._decoder = msgspec.json.Decoder(body_type)
        self._allowed = allowed

    def __call__(self, body: bytes) -> Body:
        """Decode and check a body.

        Raises:
            BadRequest: It is not JSON, or a field is missing or of the wrong type; `param` names the field.
        """
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at `$.")
            param = where.rstrip("`").partition("[")[0] or _field_in(reason)
            index = self._item_in(body, param) if "[" in where else None
            place = param if index is None else f"{param}[{index}]"
            allowed = f"; it must be {self._allowed[param]}" if param in self._allowed else ""
            raise BadRequest(f"{place}: {reason}{allowed}" if where else reason, param, index) from None
        except _UNREADABLE as error:
            if found := _lone_surrogate_in(body):
                param, index = found
                place = param if index is None else f"{param}[{index}]"
                raise BadRequest(
                    f"{place} is not valid Unicode: it has half of a surrogate pair", param, index
                ) from None
            raise BadRequest(f"the body is not valid JSON: {error}") from None

    def _item_in(self, body: bytes, param: str | None) -> int | None:
        """Find the first item of a list that may not be in it, if that can be; msgspec does not say which."""
        with contextlib.suppress(*_UNREADABLE, OverflowError):  # it was read no further than that item
            given = msgspec.json.decode(body).get(param)
            for index, item in enumerate(given if isinstance(given, list) else ()):  # a field may come twice
                try:
                    self._decoder.decode(msgspec.json.encode({param: [item]}))
                except msgspec.ValidationError as error:
                    if f"`$.{param}[" in str(error):  # else other fields are missing
                        return index
        return None


def _lone_surrogate_in(body: bytes) -> tuple[str, int | None] | None:
    """Find the field, and its item if it is a list, that has half of a surrogate pair: JSON, but no text."""
    with contextlib.suppress(ValueError, RecursionError):
        given = json.loads(body)
        for name, value in given.items() if isinstance(given, dict) else ():
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                try:
                    json.dumps(item, ensure_ascii=False).encode()
                except UnicodeEncodeError:
                    return name, index if isinstance(value, list) else None
    return None


def _field_in(reason: str) -> str | None:
    """Find the field that a message such as "Object missing required field `model`" names."""
    _, _, rest = reason.partition("field `")
    return rest.partition("`")[0] or None


def inputs_of(value: str | Sequence[Any], param: str = "input") -> list[str] | list[list[int]]:
    """Return texts or token ids as a list: of texts, or of lists of token ids.

    Raises:
        BadRequest: There is nothing, kinds are mixed, or there are more than `MAX_INPUTS`.
    """
    if isinstance(value, str):
        value = [value]
    if value in ([""], []):
        raise BadRequest(f"{param} is empty; it must be a text, token ids, or a list of either", param)
    value = list(value)
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise BadRequest(f"{param} mixes texts and token ids; it must be all of one kind", param)
    if kinds == {int}:
        return [value]
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"{param} has {len(value)} items; the limit is {MAX_INPUTS}", param)
    return value


class TextObject(msgspec.Struct):
    """A text as an object: an input of Jina's, a document of Cohere's, Jina's and Voyage's."""

    text: str


def texts_of(value: str | Sequence[str | TextObject], param: str = "documents") -> list[str]:
    """Return a text, or texts of either kind, as a list; raise `BadRequest` if there are none or too many."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise BadRequest(f"{param} is empty", param)
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"{param} has {len(value)} items; the limit is {MAX_INPUTS}", param)
    return [each.text if isinstance(each, TextObject) else each for each in value]


def one_of(*given: tuple[str, Any]) -> tuple[str, Any]:
    """Choose among fields that mean the same: the first that is not None, or else the last.

    Raises:
        InvalidOption: Another one contradicts it.
    """
    present = [(name, value) for name, value in given if value is not None]
    if not present:
        return given[-1]
    for name, value in present[1:]:
        if value != present[0][1]:
            raise InvalidOption(name, f"contradicts {present[0][0]}; give one of them")
    return present[0]


def refuse_mixed(body: msgspec.Struct, fields: Collection[str], other: str) -> None:
    """Raise `InvalidOption` if a body has one of these fields, which do not go with the field `other`."""
    for name in fields:
        if getattr(body, name) is not None:
            raise InvalidOption(name, f"does not go with {other}")


def truncation_of(truncate: bool | int | str | None, as_voyage: bool | None) -> tuple[str, Truncate]:
    """Read how texts are cut, and in which field that was said: `truncate`, or Voyage's `truncation`."""
    name, value = one_of(
        ("truncate", None if truncate is None else truncation(truncate)),
        ("truncation", None if as_voyage is None else truncation(as_voyage)),
    )
    return name, value or "none"


def named(param: str, value: str | Sequence[Any]) -> str:
    """Return the name of a field with texts as `ParsedRequest.sent_as` has it: whether it is a list of them."""
    is_list = not isinstance(value, str) and not (value and isinstance(value[0], int))
    return f"{param}[]" if is_list else param


def truncation(value: bool | int | str | None, param: str = "truncate") -> Truncate:
    """Read how texts are cut: ours, or a dialect's "END" or true; None and false cut nothing."""
    if value is None or value is False:
        return "none"
    if value is True:
        return "end"
    if isinstance(value, str):
        value = value.lower()
        if value not in ("none", "end", "start"):
            raise InvalidOption(param, f"is {value!r}; it must be none, end, start, true, false or a number of tokens")
    return value  # type: ignore[return-value]


def refuse_text_options(options: EmbedOptions) -> None:
    """Raise `InvalidOption` for options that say how a text is read, where there are token ids and no text."""
    for option, value in (("truncate", options.truncate != "none"), ("prompt_name", options.prompt)):
        if value:
            raise InvalidOption(option, "does not go with token ids, which are used as they are")


# What the dialects call the two sides of a search.
_QUERIES = {"query", "search_query", "retrieval.query"}
_DOCUMENTS = {"document", "passage", "search_document", "retrieval.passage"}


def prompt_of(jobs: Jobs, name: str | None) -> str | None:
    """Find the model's prompt for a dialect's word: its own of that name, or query's or document's."""
    if not name or name in jobs.prompts:
        return name or None
    return "query" if name in _QUERIES else "document" if name in _DOCUMENTS else name


def without_task(jobs: Jobs, options: EmbedOptions, tasks: Collection[str]) -> EmbedOptions:
    """Leave out a prompt that is one of these tasks and means nothing to the model."""
    if options.prompt is not None and options.prompt in tasks and options.prompt not in jobs.prompts:
        return msgspec.structs.replace(options, prompt=None)
    return options


def with_prompt_of(jobs: Jobs, options: EmbedOptions) -> EmbedOptions:
    """Put the model's own name of a prompt in the place of a dialect's word for it."""
    if options.prompt is None:
        return options
    return msgspec.structs.replace(options, prompt=prompt_of(jobs, options.prompt))
