"""Pool the vectors of a text's tokens into one vector for the text.

token vectors of a batch ── pool ──► one row for each text

llama.cpp pools too, but not by maximum, and a context that pools does not show token vectors. So contexts give token
vectors (`model.py`) and this is where all pooling happens, except a reranker's head, which only llama.cpp has.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Rows

# "rank" is a reranker's head: scores, not vectors. "none" is for token vectors alone.
Pooling = Literal["mean", "cls", "last", "max", "mean-sqrt", "rank", "none"]


def pool(tokens: Rows, lengths: NDArray[np.int32], pooling: Pooling) -> Rows:
    """Pool the token vectors of each text.

    Args:
        tokens: Vectors of all texts' tokens, one text after another, ``(n_tokens, dim) float32``.
        lengths: Tokens in each text, ``(n_texts,)``, each at least 1; they sum to ``n_tokens``.
        pooling: ``mean`` of a text's tokens, special ones included; ``cls`` the first; ``last`` the last; ``max`` in
            each dimension; ``mean-sqrt`` their sum over the square root of their number (sentence-transformers'
            ``mean_sqrt_len_tokens``).

    Returns:
        ``(n_texts, dim) float32``, one row per text in order.
    """
    starts = np.cumsum(lengths) - lengths
    rows: NDArray[np.floating]
    match pooling:
        case "mean":
            rows = _sums(tokens, starts, lengths) / lengths[:, None]
        case "mean-sqrt":
            rows = _sums(tokens, starts, lengths) / np.sqrt(lengths)[:, None]
        case "cls":
            rows = tokens[starts]
        case "last":
            rows = tokens[starts + lengths - 1]
        case "max":
            rows = np.maximum.reduceat(tokens, starts, axis=0)
        case _:
            raise ValueError(f"pooling {pooling!r} gives no vector for a text")
    return rows.astype(np.float32, copy=False)


def _sums(tokens: Rows, starts: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.float64]:
    sums = np.empty((len(lengths), tokens.shape[1]))
    # `np.add.reduceat` takes seven times as long: 3% of what a batch of short texts takes in all.
    for i, (start, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        np.add.reduce(tokens[start : start + n], axis=0, dtype=np.float64, out=sums[i])
    return sums
