"""The options of one call, defined once: how texts are read, and how vectors are written.

`embellama embed --flags` ──┐
bodies of HTTP requests ────┼──► EmbedOptions ──► Jobs
keywords of the engine ─────┘

Each struct adds fields to the one before. The keyword types at the end repeat their fields for type checkers and
editors, which cannot read them from a struct; a test holds them equal.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypedDict

import msgspec
from msgspec import Meta

from embellama.outputs import Dtype

# What to do with a text that is too long: raise ("none"), leave out its "end" or its "start", or every token after this
# many.
Truncate = Literal["none", "end", "start"] | int

# The first token or character of each part of a text, and the one after its last.
Spans = Sequence[tuple[int, int]]


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for vectors: how they are scaled, how many numbers they have, and of which type.

    Attributes:
        normalize: Whether vectors are scaled: True as the model's `normalization` says, or to unit length where that is
            ``none``; False not at all, as if it were ``none``; None as it says.
        dimensions: Keep this many numbers of each vector, scaled again if it was (Matryoshka: for models trained so).
        dtype: ``float32``, ``float16``, ``int8``, ``uint8``, ``binary`` or ``ubinary`` (docs/outputs.md).
    """

    normalize: Annotated[bool | None, Meta(description="Scale each vector; by default as --normalization says.")] = None
    dimensions: Annotated[int | None, Meta(description="Keep this many numbers of each vector.")] = None
    dtype: Annotated[Dtype, Meta(description="Type of a vector's numbers.")] = "float32"


class TokenOptions(OutputOptions, frozen=True, kw_only=True):
    """Options for reading texts, added to those for vectors.

    Attributes:
        prompt: Name of one of the model's prompts (docs/prompts.md); None embeds the text as it is.
        fields: Values for the prompt's fields other than its text.
        truncate: What to do with a text that is too long: raise (``"none"``), leave out its ``"end"`` or its
            ``"start"``, or whatever comes after a number of tokens. Special tokens are kept.
    """

    prompt: Annotated[str | None, Meta(description="Prompt to write around each text: query, document, …")] = None
    fields: Annotated[Mapping[str, str] | None, Meta(extra={"flag": ""})] = None
    truncate: Annotated[
        Truncate,
        Meta(description="For texts that are too long: none (an error), end, start or a number of tokens."),
    ] = "none"


class EmbedOptions(TokenOptions, frozen=True, kw_only=True):
    """Options for texts of which each gets one vector.

    Attributes:
        window_overlap: Read a text that is too long in windows, each of which repeats this many tokens of the one
            before, and take the mean of their vectors, weighted by their tokens.
    """

    window_overlap: Annotated[
        int | None,
        Meta(description="Read texts that are too long in windows that share so many tokens, and take their mean."),
    ] = None


class ChunkOptions(OutputOptions, frozen=True, kw_only=True):
    """Options for a text whose parts are embedded. Exactly one of the three fields below says which parts.

    Attributes:
        chunk_size: Tokens in a chunk; the last may have fewer. The special tokens belong to the first and the last
            chunk, so that a single chunk is the whole text.
        token_spans: First token and the one after the last of each chunk, not counting special tokens.
        character_spans: The same in characters; a token that is partly in a span belongs to it.
    """

    chunk_size: int | None = None
    token_spans: Spans | None = None
    character_spans: Spans | None = None


class OutputKeywords(TypedDict, total=False):
    """Keywords for the fields of `OutputOptions`."""

    normalize: bool | None
    dimensions: int | None
    dtype: Dtype


class TokenKeywords(OutputKeywords, total=False):
    """Keywords for the fields of `TokenOptions`."""

    prompt: str | None
    fields: Mapping[str, str] | None
    truncate: Truncate


class EmbedKeywords(TokenKeywords, total=False):
    """Keywords for the fields of `EmbedOptions`."""

    window_overlap: int | None


class ChunkKeywords(OutputKeywords, total=False):
    """Keywords for the fields of `ChunkOptions`."""

    chunk_size: int | None
    token_spans: Spans | None
    character_spans: Spans | None
