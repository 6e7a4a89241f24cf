"""Results of the engine: vectors, chunks, rankings."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.errors import EmbellamaError


class Embeddings(NamedTuple):
    """Vectors of texts, and how the texts were read.

    vectors: ``(n_texts, dim) float32``, one row per text in the order given, scaled as `normalization` says unless
        `normalize` does; fewer numbers with `dimensions`, and of another type with `dtype`
        (`embellama.outputs.quantize`).
    n_tokens: Tokens computed for each text, special ones included, ``(n_texts,) int32``.
    n_cut: Tokens of each text that were left out, ``(n_texts,) int32``.
    """

    vectors: NDArray[Any]
    n_tokens: NDArray[np.int32]
    n_cut: NDArray[np.int32]


class Outcomes(NamedTuple):
    """What came of texts of which some may be at fault.

    good: Positions of the texts that have a vector, increasing, ``(n_good,) int64``.
    embeddings: Theirs, in that order.
    errors: Why each other text has none, by its position; an error's own `index` means nothing here.
    """

    good: NDArray[np.int64]
    embeddings: Embeddings
    errors: Mapping[int, EmbellamaError]


class Chunks(NamedTuple):
    """Vectors of the parts of one text.

    vectors: ``(n_chunks, dim)``, as in `Embeddings`.
    spans: First token of each chunk and the one after its last, not counting the special token at the text's start,
        ``(n_chunks, 2) int32``; of characters, when those were asked for.
    """

    vectors: NDArray[Any]
    spans: NDArray[np.int32]


class Ranked(msgspec.Struct, frozen=True):
    """One document of a ranking.

    Attributes:
        index: Its position among the documents given.
        relevance_score: As `Ranking.method` says.
    """

    index: int
    relevance_score: float


class Ranking(NamedTuple):
    """Documents by relevance, the most relevant first; equal ones in the order given.

    method: ``cross-encoder``: the score is what the model's head gives for query and document read together.
        ``cosine``: the model is no reranker, and the score is the cosine of their vectors, -1 to 1.
    n_tokens: Tokens computed.
    n_cut: Tokens of each document that were left out, in the order given, ``(n_documents,) int32``.
    """

    results: list[Ranked]
    method: Literal["cross-encoder", "cosine"]
    n_tokens: int
    n_cut: NDArray[np.int32]
