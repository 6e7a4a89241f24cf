"""One llama.cpp context, confined to the thread that made it.

Batch ── EmbeddingModel.encode ──► llama_encode ──► (n_texts, dim) float32, checked row by row

What kills a process in llama.cpp is checked before each call: more tokens than `n_ubatch`, more texts than
`n_seq_max`. What comes out is checked too: a row that is not finite, or all zeros, is an error and never a vector.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Batch, plan_batches
from embellama.config import EngineConfig
from embellama.errors import EmbeddingFailed, EmptyInput, ModelError, ModelLoadError, TextTooLong, WrongThread
from embellama.llama import c_api, last_error
from embellama.tokenizer import Tokenizer
from embellama.weights import Weights

Rows = NDArray[np.float32]


class EmbeddingModel:
    """One context on a model's weights: turns batches of token ids into embeddings.

    A llama.cpp context must not be used by two threads, so an `EmbeddingModel` belongs to the thread that made
    it: any use from another thread, and pickling, raises `WrongThread`. Use an `EmbeddingEngine` to share a model.

    Attributes:
        config: The checked config it runs with.
        dim: Length of an embedding.
        tokenizer: Turns texts into what `encode` takes.
    """

    def __init__(self, config: EngineConfig, weights: Weights | None = None):
        """Make a context on `weights`, or load `config.model_path` for this context alone.

        Raises:
            ConfigError: A setting is wrong.
            ModelLoadError: The file cannot be loaded, or is no embedding model.
        """
        self._owner = threading.current_thread()
        self._pid = os.getpid()
        self.config = config.checked()
        weights = weights or Weights(self.config)
        self.dim = weights.dim
        self.tokenizer = Tokenizer(weights, self.config.n_ctx)
        self._context = _Context(self.config, weights, self.tokenizer.limit)

    def embed(self, text: str) -> Rows:
        """Embed one text; ``(dim,) float32``. Raises as `embed_batch` does."""
        return self.embed_batch([text])[0]  # type: ignore[no-any-return]

    def embed_batch(self, texts: Iterable[str]) -> Rows:
        """Embed texts on this thread.

        Returns:
            ``(n_texts, dim) float32``, one row per text in the order given; unit length when `normalize` is set.

        Raises:
            InputError: A text is empty, too long or not valid.
            EmbeddingFailed: The model gave no usable vector for a text.
            WrongThread: Another thread owns this model.
        """
        tokens = self.tokenizer.encode(texts)
        rows = np.empty((len(tokens), self.dim), np.float32)
        config = self.config
        groups = list(plan_batches([len(t) for t in tokens], config.max_batch_tokens, config.max_batch_size))
        while groups:
            group = groups.pop()
            try:
                rows[group] = self.encode(Batch.join([tokens[i] for i in group]))
            except EmbeddingFailed as error:
                if len(group) == 1:
                    raise EmbeddingFailed(group[0], error.reason) from None
                groups.extend([i] for i in group)
        return rows

    def encode(self, batch: Batch, n_threads: int | None = None) -> Rows:
        """Compute one batch in one llama.cpp call.

        Args:
            batch: Token ids of the texts, special tokens included.
            n_threads: Threads to compute with; by default those of a batch that has the machine to itself.

        Returns:
            ``(n_texts, dim) float32``, one row per text in order; unit length when `normalize` is set.

        Raises:
            EmptyInput: A text has no tokens.
            TextTooLong: The batch has more tokens than the context takes at once.
            EmbeddingFailed: A vector is not finite, or all zeros. In a batch of several texts the one at fault may be
                another than the one named, because what is not finite spreads to its neighbours.
            ModelError: llama.cpp failed on the batch and does not say on which text.
            WrongThread: Another thread owns this model.
        """
        self._check_owner("used from")
        rows = self._context.run(batch, n_threads or self.config.n_threads_alone)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        usable = np.isfinite(norms) & (norms > 0)
        if not usable.all():
            index = int(np.argmin(usable))
            raise EmbeddingFailed(index, "its vector is all zeros" if norms[index] == 0 else "its vector is not finite")
        if self.config.normalize:
            rows /= norms[:, None].astype(np.float32)
        return rows

    def close(self) -> None:
        """Free the context, and the weights with their last user. Calling it again does nothing."""
        self._check_owner("closed from")
        self._context.close()

    def __enter__(self) -> "EmbeddingModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise WrongThread(self.config.model_name, self._owner_name(), "pickled")

    def _check_owner(self, attempt: str) -> None:
        current = threading.current_thread()
        if current is not self._owner or os.getpid() != self._pid:
            user = f"thread {current.name!r} of process {os.getpid()}"
            raise WrongThread(self.config.model_name, self._owner_name(), f"{attempt} {user}")

    def _owner_name(self) -> str:
        return f"thread {self._owner.name!r} of process {self._pid}"


class _Context:
    """The llama.cpp context and the arrays it reads batches from."""

    def __init__(self, config: EngineConfig, weights: Weights, limit: int):
        # Powers of two: llama.cpp aborts on an n_ubatch that is not a multiple of n_seq_max.
        self.n_seq_max = _power_of_two(config.max_batch_size)
        self.n_ubatch = max(_power_of_two(max(limit, config.max_batch_tokens)), self.n_seq_max)
        self.dim = weights.dim
        params = c_api.llama_context_default_params()
        # Encoders read a batch in one piece, so it must fit one n_ubatch; n_ctx holds the whole batch, shared by
        # its texts (kv_unified), so no text is cut to n_ctx / n_seq_max.
        params.n_ctx = params.n_batch = params.n_ubatch = self.n_ubatch
        params.n_seq_max = self.n_seq_max
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = c_api.LLAMA_POOLING_TYPE_UNSPECIFIED  # the file's own
        # Without flash attention a batch of 512 tokens takes three times as long.
        params.flash_attn_type = c_api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        last_error()
        context = c_api.llama_init_from_model(weights.model, params)
        if not context:
            raise ModelLoadError(weights.path, last_error() or "llama.cpp made no context and does not say why")
        # The finalizer holds the weights, so that they outlive the context. Not at exit: see Weights.
        self._free = weakref.finalize(self, _free, context, weights)
        self._free.atexit = False
        self._pointer: Any = context
        pooling = c_api.llama_pooling_type(context)
        if pooling in (c_api.LLAMA_POOLING_TYPE_NONE, c_api.LLAMA_POOLING_TYPE_RANK):
            what = "a reranker" if pooling == c_api.LLAMA_POOLING_TYPE_RANK else "a model without a pooling type"
            raise ModelLoadError(weights.path, f"it is {what}, which gives no embedding for a text")

        # Causal models decode into a memory that must be cleared; encoders have none.
        self._memory: Any = c_api.llama_get_memory(context)
        n, pointer = self.n_ubatch, ctypes.POINTER
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._seq_ids = np.arange(self.n_seq_max, dtype=np.int32)
        self._seq_id_pointers = np.zeros(n, np.uintp)
        self._ones = np.ones(n, np.int32)
        self._outputs = np.ones(n, np.int8)
        self._batch = c_api.llama_batch(
            0,
            self._tokens.ctypes.data_as(pointer(c_api.llama_token)),
            None,
            self._positions.ctypes.data_as(pointer(c_api.llama_pos)),
            self._ones.ctypes.data_as(pointer(ctypes.c_int32)),
            ctypes.cast(self._seq_id_pointers.ctypes.data, pointer(pointer(c_api.llama_seq_id))),
            self._outputs.ctypes.data_as(pointer(ctypes.c_int8)),
        )

    def run(self, batch: Batch, n_threads: int) -> Rows:
        """Return what the model's pooling gives for each text, ``(n_texts, dim) float32``, unchecked."""
        n_tokens, n_texts = len(batch.tokens), len(batch.lengths)
        if n_texts == 0 or batch.lengths.min() < 1:
            raise EmptyInput(int(batch.lengths.argmin()) if n_texts else None)
        if n_tokens > self.n_ubatch:
            raise TextTooLong(int(batch.lengths.argmax()), n_tokens, self.n_ubatch)
        if batch.lengths.sum() != n_tokens:
            raise ModelError(f"lengths sum to {batch.lengths.sum()}, but there are {n_tokens} tokens")
        if n_texts > self.n_seq_max:
            raise ModelError(f"a batch of {n_texts} texts is larger than this context takes, {self.n_seq_max}")

        if self._pointer is None:
            raise ModelError("this model is closed")

        text_of_token = np.repeat(np.arange(n_texts), batch.lengths)
        first_token = np.cumsum(batch.lengths) - batch.lengths
        self._tokens[:n_tokens] = batch.tokens
        self._positions[:n_tokens] = np.arange(n_tokens) - first_token[text_of_token]
        self._seq_id_pointers[:n_tokens] = self._seq_ids.ctypes.data + self._seq_ids.itemsize * text_of_token
        self._batch.n_tokens = n_tokens

        c_api.llama_set_n_threads(self._pointer, n_threads, n_threads)
        if self._memory:
            c_api.llama_memory_clear(self._memory, True)
            status = c_api.llama_decode(self._pointer, self._batch)
        else:
            status = c_api.llama_encode(self._pointer, self._batch)
        if status != 0:
            raise ModelError(f"llama.cpp failed on a batch of {n_texts} texts (status {status}): {last_error()}")

        rows = np.empty((n_texts, self.dim), np.float32)
        row_bytes = rows.strides[0]
        for i in range(n_texts):
            row = c_api.llama_get_embeddings_seq(self._pointer, i)
            if not row:
                raise EmbeddingFailed(i, "llama.cpp gave no vector for it")
            ctypes.memmove(rows.ctypes.data + i * row_bytes, row, row_bytes)
        return rows

    def close(self) -> None:
        self._free()
        self._pointer = None


def _free(context: Any, _weights: Weights) -> None:
    c_api.llama_free(context)


def _power_of_two(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length()
