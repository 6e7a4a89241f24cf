"""Join texts, as arrays of token ids, into batches for one llama.cpp call.

token ids of each text ── Batch.join ──► tokens, lengths ──► EmbeddingModel.encode, or a pipe to a worker
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Rows = NDArray[np.float32]


class Batch(NamedTuple):
    """Texts to compute together.

    tokens: Token ids of all texts one after another, ``(n_tokens,) int32``.
    lengths: Tokens in each text, ``(n_texts,) int32``, each at least 1; they sum to ``n_tokens``.
    per_token: Whether a row is wanted for each of a text's tokens rather than one for the text, ``(n_texts,) bool``;
        None wants one for each text.
    """

    tokens: Tokens
    lengths: NDArray[np.int32]
    per_token: NDArray[np.bool_] | None = None

    @classmethod
    def join(cls, texts: Sequence[Tokens], per_token: Sequence[bool] | None = None) -> "Batch":
        """Put texts, each ``(n,) int32``, one after another."""
        lengths = np.fromiter(map(len, texts), np.int32, len(texts))
        wanted = np.array(per_token, np.bool_) if per_token and any(per_token) else None
        return cls(np.concatenate(texts), lengths, wanted)

    @property
    def n_rows(self) -> NDArray[np.int32]:
        """Rows wanted for each text, ``(n_texts,)``."""
        if self.per_token is None:
            return np.ones_like(self.lengths)
        return np.where(self.per_token, self.lengths, 1)


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
