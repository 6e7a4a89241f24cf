"""Measure how similar vectors are.

rows ── cosine, dot ──► (n, m)          floats, or int8 from `embellama.outputs.quantize`
packed bits ── hamming ──► (n, m)       binary or ubinary
rows of tokens ── max_sim ──► a score   late interaction: a vector for each token

uint8 rows carry an offset of 128: take it away first, `rows.astype(np.int16) - 128`, or use int8.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embellama.errors import EmptyInput, InputError

# How many bits are set in each byte; np.bitwise_count is only in NumPy 2.
_BITS_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def dot(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Return the dot product of each vector of `a` with each of `b`; of unit vectors, it is the cosine.

    Args:
        a: ``(dim,)`` or ``(n, dim)``, floats or int8.
        b: ``(dim,)`` or ``(m, dim)``, floats or int8.

    Returns:
        ``(n, m) float32``, without the axis of whatever is one vector. In float32 throughout, so that int8 cannot
        overflow; of int8 rows it is exact up to 1040 dimensions, where a sum may pass 2**24.

    Raises:
        InputError: The vectors differ in length.
    """
    _check_lengths(a, b, "numbers")
    return np.inner(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False))  # type: ignore[no-any-return]


def cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Return the cosine of the angle between each vector of `a` and each of `b`, -1 to 1; 0 for a vector of zeros.

    Takes, returns and raises as `dot` does.
    """
    return np.clip(dot(_unit(a), _unit(b)), -1, 1)


def hamming(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    """Count the bits in which each packed vector of `a` differs from each of `b`.

    For ``d`` of ``dim`` bits, ``1 - 2 * d / dim`` is the cosine of the vectors of signs.

    Args:
        a: ``(n_bytes,)`` or ``(n, n_bytes)``; int8 is taken as binary, uint8 as ubinary.
        b: ``(n_bytes,)`` or ``(m, n_bytes)``, likewise.

    Returns:
        ``(n, m) int64``, without the axis of whatever is one vector.

    Raises:
        InputError: The vectors differ in length, or are not packed bits.
    """
    _check_lengths(a, b, "bytes")
    bits_a, bits_b = _bits(np.atleast_2d(a)), _bits(np.atleast_2d(b))
    # Row by row: n × m × n_bytes at once would be far more memory than either input.
    counts = [_BITS_SET[row ^ bits_b].sum(axis=1, dtype=np.int64) for row in bits_a]
    return np.reshape(counts, a.shape[:-1] + b.shape[:-1]).astype(np.int64, copy=False)


def max_sim(query: NDArray[Any], document: NDArray[Any]) -> float:
    """Score one document, as `max_sims` does."""
    return float(max_sims(query, [document])[0])


def max_sims(query: NDArray[Any], documents: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Score documents by late interaction: each token of the query finds the token of the document most like it.

    The score is the sum, over the query's tokens, of the largest dot product with any token of the document (MaxSim;
    Khattab and Zaharia, ColBERT, SIGIR 2020). With unit vectors it is at most the number of the query's tokens.

    Args:
        query: One vector for each token, ``(n_query_tokens, dim)``, floats or int8.
        documents: The same for each document, ``(n_tokens, dim)``, with as many tokens as it has.

    Returns:
        ``(n_documents,) float32``, in the order given.

    Raises:
        EmptyInput: A document has no tokens; `index` is its position, or None when it is the query.
        InputError: The vectors differ in length.
    """
    if not len(query):
        raise EmptyInput(None)
    scores = np.empty(len(documents), np.float32)
    for i, document in enumerate(documents):
        if not len(document):
            raise EmptyInput(i)
        scores[i] = dot(query, document).max(axis=1).sum()
    return scores


def _check_lengths(a: NDArray[Any], b: NDArray[Any], what: str) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise InputError(f"a vector of {a.shape[-1]} {what} cannot be compared with one of {b.shape[-1]}")


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def _bits(packed: NDArray[Any]) -> NDArray[np.uint8]:
    if packed.dtype == np.int8:
        return packed.view(np.uint8) ^ np.uint8(128)
    if packed.dtype == np.uint8:
        return packed
    raise InputError(f"hamming takes packed bits, int8 or uint8, not {packed.dtype}")
