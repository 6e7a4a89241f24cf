"""A tiny GGUF file being written."""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.tiny.vocabularies import POISON, AddVocabulary


class TinyFile:
    """Metadata and random tensors on their way into a GGUF file.

    Attributes:
        writer: gguf's writer, for metadata.
        dim: Length of a token vector.
        n_ff: Values in the middle of a feed-forward.
        n_layers: Layers.
        n_vocab: Tokens in the vocabulary.
    """

    def __init__(
        self,
        path: Path,
        architecture: str,
        vocabulary: AddVocabulary,
        *,
        dim: int = 32,
        n_ff: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        n_ctx: int = 64,
        gain: float = 1.0,
        pooling: gguf.PoolingType | None,
    ):
        """Start a file at `path` and write the metadata every model has.

        Args:
            gain: Every matrix is multiplied by it. The larger, the more attention and feed-forwards tell, and the more
                their rounding shows.
            pooling: None states no pooling type.
        """
        self._path = path
        self._gain = gain
        self._random = np.random.default_rng(0)
        self.dim, self.n_ff, self.n_layers = dim, n_ff, n_layers
        self.writer = writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(n_ctx)
        writer.add_embedding_length(dim)
        writer.add_feed_forward_length(n_ff)
        writer.add_block_count(n_layers)
        writer.add_head_count(n_heads)
        if pooling is not None:
            writer.add_pooling_type(pooling)
        pieces = vocabulary(writer)
        self.n_vocab = len(pieces)
        self._poison = [i for i, piece in enumerate(pieces) if piece.endswith(POISON)]

    def embedding(self, name: str, n_rows: int, *, gain: float = 1.0) -> None:
        """Add ``(n_rows, dim)`` values of about `gain`; of the token embeddings, those of "poison" are not numbers."""
        rows = self._random.normal(0, gain, (n_rows, self.dim))
        if name == "token_embd":
            rows[self._poison] = np.nan
        self._add(f"{name}.weight", rows)

    def linear(self, name: str, n_out: int, n_in: int, *, gain: float = 1.0, bias: bool = False) -> None:
        """Add an ``(n_out, n_in)`` matrix that turns values of about 1 into values of about `gain`."""
        self._add(f"{name}.weight", self._random.normal(0, gain * self._gain / np.sqrt(n_in), (n_out, n_in)))
        if bias:
            self._add(f"{name}.bias", self._random.normal(0, 0.1, n_out))

    def experts(self, name: str, n_experts: int, n_out: int, n_in: int) -> None:
        """Add a matrix for each of `n_experts`, ``(n_experts, n_out, n_in)``."""
        self._add(f"{name}.weight", self._random.normal(0, 1 / np.sqrt(n_in), (n_experts, n_out, n_in)))

    def norm(self, name: str, n: int | None = None, *, bias: bool = False, zero: bool = False) -> None:
        """Add the `n` scales of a norm, by default `dim`, all different; with `zero`, everything comes out as zeros."""
        n = n or self.dim
        self._add(f"{name}.weight", self._random.uniform(0.5, 1.5, n) * (not zero))
        if bias:
            self._add(f"{name}.bias", self._random.normal(0, 0.1, n) * (not zero))

    def save(self) -> Path:
        """Write the file and return its path."""
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self._path

    def _add(self, name: str, tensor: NDArray[np.float64]) -> None:
        self.writer.add_tensor(name, tensor.astype(np.float32))
