"""Bodies of requests for vectors and of their answers, in OpenAI's words.

texts ── RequestBody ──► JSON ──► a server ──► JSON ── vectors_of ──► Answer: rows in the texts' order
token ids ─────────────► JSON ──► embellama ──► bytes ── rows_of ──► Answer
"""

import base64
import binascii
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.batch import Rows
from embellama.remote.faults import Transient

# Texts, or token ids of each.
Inputs = list[str] | list[list[int]]

# How embellama's servers answer with the rows as they are in memory, and what says how many there are.
RAW = "application/octet-stream"
SHAPE_HEADER = "x-embedding-shape"


class RequestBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Body of ``POST /embeddings``; what is below `encoding_format` only embellama's servers read."""

    model: str
    input: Inputs
    encoding_format: str | None = None
    normalized: bool | None = None
    prompt_name: str | None = None
    truncate: str | int | None = None
    return_truncated: bool | None = None


class Answer(NamedTuple):
    """What a server computed of a request.

    rows: ``(n_texts, dim) float32``, in the texts' order; they may hold what is not finite.
    n_tokens: Tokens of each text, ``(n_texts,)``; None where the server does not say.
    n_cut: Tokens of each that were left out, ``(n_texts,)``; None where it does not say.
    total_tokens: Tokens of all texts; 0 where it does not say.
    prompt: Identity of the prompt that was written around them; "" for none, or where it does not say.
    """

    rows: Rows
    n_tokens: list[int] | None
    n_cut: list[int] | None
    total_tokens: int
    prompt: str = ""


class _Item(msgspec.Struct):
    embedding: str | list[float]
    index: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Body(msgspec.Struct):
    data: list[_Item]
    usage: _Usage | None = None
    truncated: list[int] | None = None
    n_tokens: list[int] | None = None


_decode = msgspec.json.Decoder(_Body).decode


def vectors_of(body: bytes, n_texts: int, dim: int | None) -> Answer:
    """Read the answer to a request with so many texts.

    Args:
        body: JSON; vectors are lists of numbers, or base64 of little-endian float32.
        n_texts: How many vectors there must be.
        dim: How many numbers each must have; None if that is not known yet.

    Raises:
        Transient: It is something else.
    """
    try:
        read = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Transient(f"the answer is none: {error}") from None
    given = [number if item.index is None else item.index for number, item in enumerate(read.data)]
    if sorted(given) != list(range(n_texts)):
        raise Transient(f"the answer has {len(given)} vectors for {n_texts} texts, or numbers them wrongly")
    vectors = [_vector(item.embedding) for item in read.data]
    lengths = {len(vector) for vector in vectors}
    if len(lengths) != 1 or lengths == {0} or (dim and lengths != {dim}):
        raise Transient(f"the answer has vectors of {', '.join(map(str, sorted(lengths)))} numbers, not of {dim}")
    rows = np.empty((n_texts, lengths.pop()), np.float32)
    rows[given] = vectors
    for counts in (read.n_tokens, read.truncated):
        if counts is not None and len(counts) != n_texts:
            raise Transient(f"the answer counts the tokens of {len(counts)} texts, not of {n_texts}")
    return Answer(rows, read.n_tokens, read.truncated, _total(read))


def rows_of(body: bytes, shape: str, n_texts: int, dim: int) -> Answer:
    """Read an answer of `RAW`: the rows' numbers, as little-endian float32; its tokens are known to who sent them.

    Raises:
        Transient: It is something else; `shape` is what its header says.
    """
    if shape != f"{n_texts},{dim}" or len(body) != 4 * n_texts * dim:
        raise Transient(f"the answer has {len(body)} bytes and the shape {shape or '(none)'}, not {n_texts},{dim}")
    return Answer(np.frombuffer(body, "<f4").reshape(n_texts, dim), None, None, 0)


def _vector(embedding: str | list[float]) -> NDArray[Any]:
    if not isinstance(embedding, str):
        with np.errstate(over="ignore"):  # what float32 cannot hold is found later, as what is not finite
            return np.array(embedding, np.float64).astype(np.float32)
    try:
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    except (binascii.Error, ValueError) as error:
        raise Transient(f"the answer has a vector that is no base64 of float32: {error}") from None


def _total(read: _Body) -> int:
    if read.n_tokens is not None:
        return sum(read.n_tokens)
    usage = read.usage or _Usage()
    return max(0, usage.total_tokens or usage.prompt_tokens or 0)
