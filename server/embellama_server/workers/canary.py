"""The canary: a short text that every worker must embed as the first one did, before it serves and while it does.

A worker that fails it has another model, or its memory or arithmetic is damaged.
"""

import numpy as np

from embellama.batch import Batch, Rows, Tokens

# A worker's canary must point where the first worker's did. Thread counts and restarts change the last bits only.
CANARY_COSINE = 0.9999

# A reranker's canary has scores, no direction: they may differ by this much, or by this share of the first worker's.
CANARY_SCORE = 0.02


class Canary:
    """The canary's text, and the row that the first worker computed for it.

    Attributes:
        batch: The text, as it is sent to workers.
    """

    def __init__(self, text: Tokens, *, scores: bool):
        """Take the canary's token ids; with `scores` a row is a reranker's scores, not a vector."""
        self.batch = Batch.join([text])
        self._scores = scores
        self._first: Rows | None = None

    @property
    def is_known(self) -> bool:
        """Whether a worker has computed the canary."""
        return self._first is not None

    def difference(self, row: Rows) -> str:
        """Say how a worker's row, ``(dim,)``, differs from the first worker's, which is kept; "" if it agrees."""
        if self._first is None:
            self._first = row
        first = self._first
        if len(row) != len(first):
            return f"its canary has {len(row)} dimensions, the first worker's {len(first)}"
        if self._scores:
            agrees = np.allclose(row, first, rtol=CANARY_SCORE, atol=CANARY_SCORE)
            return "" if agrees else f"its canary has scores {row.tolist()}, the first worker's {first.tolist()}"
        cosine = float(first @ row) / float(np.linalg.norm(first) * np.linalg.norm(row))
        return "" if cosine >= CANARY_COSINE else f"its canary has cosine {cosine:.5f} to the first worker's"
