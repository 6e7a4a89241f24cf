"""Join texts, as arrays of token ids, into batches for one llama.cpp call.

token ids of each text ── Batch.join ──► tokens, lengths, kinds ──► EmbeddingModel.encode, or a pipe to a worker
"""

import enum
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Rows = NDArray[np.float32]


class RowKind(enum.IntEnum):
    """The kind of row that a text is computed for.

    TEXT: One row, pooled and scaled as the model's `normalization` says.
    POOLED: One row, pooled but not scaled.
    TOKEN: A row for each of the text's tokens, as the model gives them.
    """

    TEXT = 0
    POOLED = 1
    TOKEN = 2


class Batch(NamedTuple):
    """Texts to compute together.

    tokens: Token ids of all texts one after another, ``(n_tokens,) int32``.
    lengths: Tokens in each text, ``(n_texts,) int32``, each at least 1; they sum to ``n_tokens``.
    kinds: The `RowKind` of each text, ``(n_texts,) uint8``; None if all are `RowKind.TEXT`, as nearly always.
    """

    tokens: Tokens
    lengths: NDArray[np.int32]
    kinds: NDArray[np.uint8] | None = None

    @classmethod
    def join(cls, texts: Sequence[Tokens], kinds: Sequence[RowKind] | None = None) -> "Batch":
        """Put texts, each ``(n,) int32``, one after another."""
        lengths = np.fromiter(map(len, texts), np.int32, len(texts))
        # RowKind.TEXT is the one that is false.
        wanted = np.array(kinds, np.uint8) if kinds and any(kinds) else None
        return cls(np.concatenate(texts), lengths, wanted)

    @property
    def n_rows(self) -> NDArray[np.int32]:
        """Rows wanted for each text, ``(n_texts,)``."""
        if self.kinds is None:
            return np.ones_like(self.lengths)
        return np.where(self.kinds == RowKind.TOKEN, self.lengths, 1)


def row_starts(tokens: Sequence[Tokens], kind: RowKind) -> Sequence[int]:
    """Return the first row of each text among those of all, and behind them the number of rows, ``(n_texts + 1,)``."""
    if kind == RowKind.TOKEN:
        return [0, *itertools.accumulate(map(len, tokens))]
    return range(len(tokens) + 1)


def plan_batches(n_tokens: Sequence[int], max_tokens: int, max_texts: int) -> Iterator[list[int]]:
    """Group texts of like length into batches.

    Args:
        n_tokens: Tokens in each text, ``(n_texts,)``.
        max_tokens: Most tokens in one batch; a longer text goes alone.
        max_texts: Most texts in one batch.

    Yields:
        Groups of indices; together, each index once.
    """
    batch: list[int] = []
    room = max_tokens
    for i in sorted(range(len(n_tokens)), key=n_tokens.__getitem__):
        if batch and (n_tokens[i] > room or len(batch) == max_texts):
            yield batch
            batch, room = [], max_tokens
        batch.append(i)
        room -= n_tokens[i]
    if batch:
        yield batch
