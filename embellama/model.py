"""Compute embeddings in one llama.cpp context, on the thread that made it.

Batch ── EmbeddingModel.encode ──► llama_encode or llama_decode ──► token vectors ── pool, normalize ──► rows, checked

llama.cpp ends the process if a batch has more tokens than `n_ubatch` or more texts than `n_seq_max`, so that is checked
before each call. Rows are checked too: one that is not finite, or all zeros, is an error and never a vector.
"""

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.batch import Batch, RowKind, Rows, plan_batches
from embellama.config import DEFAULT_BATCH_TOKENS, EngineConfig
from embellama.errors import (
    EmbeddingFailed,
    EmptyInput,
    InputError,
    ModelError,
    ModelLoadError,
    TextTooLong,
    WrongThread,
)
from embellama.gguf.loading import load_weights
from embellama.gguf.weights import Weights
from embellama.llama import c_api, last_error
from embellama.outputs import normalize
from embellama.pooling import pool
from embellama.text.tokenizer import Tokenizer

# Tokens a context is first made for. Its buffers are reserved at once, and a causal model's memory is also written, so
# 32,768 tokens for a model of 0.6 billion parameters would take 3.6 GB in every worker.
FIRST_CONTEXT = 512

# A causal model reads a longer text in pieces of this many tokens: twice as many mask a square four times as large.
CAUSAL_UBATCH = 512


class EmbeddingModel:
    """One context on a model's weights: turns batches of token ids into embeddings.

    A llama.cpp context must not be used by two threads, so an `EmbeddingModel` belongs to the thread that made
    it: any use from another thread, and pickling, raises `WrongThread`. Use an `EmbeddingEngine` to share a model.

    Attributes:
        config: The checked config it runs with. Without an engine nothing is measured: where the config does not set
            `max_batch_tokens`, it is the default, 192.
        dim: Length of an embedding, or the number of a reranker's scores for a pair.
        pooling: How a text's tokens become one vector.
        limit: Most tokens in a text.
    """

    def __init__(self, config: EngineConfig, weights: Weights | None = None):
        """Make a context on `weights`, or load `config.model_path` for this context alone.

        Raises:
            ConfigError: A setting is wrong.
            ModelLoadError: The file cannot be loaded, or is no embedding model.
        """
        self._owner = threading.current_thread()
        self._pid = os.getpid()
        config = config.checked()
        batch_tokens = config.max_batch_tokens or DEFAULT_BATCH_TOKENS
        self.config = msgspec.structs.replace(config, max_batch_tokens=batch_tokens)
        self._weights = weights or load_weights(self.config)
        self.pooling = self._weights.pooling
        self.dim = self._weights.dim
        self.limit = min(self.config.n_ctx or self._weights.n_ctx_train, self._weights.n_ctx_train)
        # As many tokens as most batches have; a longer text has a larger context made for it (`encode`).
        n_tokens = max(min(self.limit, FIRST_CONTEXT), self.config.max_batch_tokens)
        self._context: _Context | None = _Context(self.config, self._weights, n_tokens)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Turns texts into token ids. Made on first use, because a server's workers have no use for it."""
        return Tokenizer(self._weights, self.config.n_ctx)

    def embed(self, text: str) -> Rows:
        """Embed one text; ``(dim,) float32``. Raises as `embed_batch` does."""
        return self.embed_batch([text])[0]  # type: ignore[no-any-return]

    def embed_batch(self, texts: Iterable[str]) -> Rows:
        """Embed texts on this thread.

        Returns:
            ``(n_texts, dim) float32``, one row per text in the order given, scaled as `normalization` says.

        Raises:
            InputError: A text is empty, too long or not valid.
            EmbeddingFailed: The model gave no usable vector for a text.
            WrongThread: Another thread owns this model.
        """
        tokens = self.tokenizer.encode(texts).tokens
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
            ``(sum of batch.n_rows, dim) float32``: each text's rows, one text after another, of the `RowKind` that it
            has in the batch. A reranker's are its head's scores.

        Raises:
            EmptyInput: A text has no tokens.
            TextTooLong: The batch has more tokens than the model reads at once.
            EmbeddingFailed: A vector is not finite, or all zeros; for a lone text, also on a fresh context. In a batch
                of several texts the one at fault may be another than the one named, because what is not finite
                spreads to its neighbours.
            ModelError: llama.cpp failed on the batch and does not say on which text.
            WrongThread: Another thread owns this model.
        """
        self._check_owner("used from")
        if self._context is None:
            raise ModelError("this model is closed")
        self._check(batch)
        if len(batch.tokens) > self._context.n_tokens:
            self._renew(len(batch.tokens))
        n_threads = n_threads or self.config.n_threads_alone
        try:
            return self._compute(batch, n_threads)
        except ModelError:
            if len(batch.lengths) > 1:
                raise
            # Values that an earlier text left in the context may be to blame.
            self._renew(self._context.n_tokens)
            return self._compute(batch, n_threads)

    def _compute(self, batch: Batch, n_threads: int) -> Rows:
        assert self._context is not None
        vectors = self._context.run(batch, n_threads)
        if self.pooling == "rank":
            return _finite(vectors)
        if batch.kinds is None:
            return self._rows(RowKind.TEXT, vectors, batch.lengths)
        return self._mixed(batch, vectors)

    def close(self) -> None:
        """Free the context, and the weights with their last user. Calling it again does nothing."""
        self._check_owner("closed from")
        if self._context:
            self._context.close()
            self._context = None

    def __enter__(self) -> "EmbeddingModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise WrongThread(self.config.model_name, self._owner_name(), "pickled")

    def _renew(self, n_tokens: int) -> None:
        """Replace the context by one for so many tokens."""
        assert self._context is not None
        n_before, in_pieces = self._context.n_tokens, self._context.causal
        self._context.close()  # first: there may be no memory for both
        try:
            self._context = _Context(self.config, self._weights, n_tokens, in_pieces)
        except ModelLoadError as error:
            self._context = _Context(self.config, self._weights, n_before, in_pieces)
            raise ModelError(f"there is no context for {n_tokens} tokens: {error.reason}") from None

    def _check(self, batch: Batch) -> None:
        n_tokens, n_texts = len(batch.tokens), len(batch.lengths)
        most = max(self.limit, self.config.max_batch_tokens)
        if n_texts == 0 or batch.lengths.min() < 1:
            raise EmptyInput(int(batch.lengths.argmin()) if n_texts else None)
        if n_tokens > most:
            raise TextTooLong(int(batch.lengths.argmax()), n_tokens, most)
        if batch.lengths.sum() != n_tokens:
            raise ModelError(f"lengths sum to {batch.lengths.sum()}, but there are {n_tokens} tokens")
        if n_texts > self.config.max_batch_size:
            raise ModelError(f"a batch of {n_texts} texts is larger than max_batch_size, {self.config.max_batch_size}")
        if self.pooling == "none" and (batch.kinds is None or (batch.kinds != RowKind.TOKEN).any()):
            raise InputError("pooling is none, so a text has no vector, only its tokens have")
        if self.pooling == "rank" and batch.kinds is not None:
            raise InputError("a reranker gives scores, no vectors")

    def _rows(self, kind: RowKind, tokens: Rows, lengths: NDArray[np.int32]) -> Rows:
        """Make the rows of texts that are all of one kind, and check them, from the vectors of their tokens."""
        if kind == RowKind.TOKEN:
            return normalize(tokens, "none").copy()  # they are llama.cpp's
        rows = pool(tokens, lengths, self.pooling)
        return normalize(rows, self.config.normalization if kind == RowKind.TEXT else "none")

    def _mixed(self, batch: Batch, tokens: Rows) -> Rows:
        """Make the rows of texts whose kinds may differ, one text after another."""
        kinds, lengths = batch.kinds, batch.lengths
        assert kinds is not None
        if (kinds == RowKind.POOLED).all():
            return self._rows(RowKind.POOLED, tokens, lengths)
        parts = np.split(tokens, np.cumsum(lengths)[:-1])
        rows = []
        for index, (kind, part) in enumerate(zip(kinds.tolist(), parts, strict=True)):
            try:
                rows.append(self._rows(RowKind(kind), part, lengths[index : index + 1]))
            except EmbeddingFailed as error:
                raise EmbeddingFailed(index, error.reason) from None
        return np.concatenate(rows)

    def _check_owner(self, attempt: str) -> None:
        current = threading.current_thread()
        if current is not self._owner or os.getpid() != self._pid:
            user = f"thread {current.name!r} of process {os.getpid()}"
            raise WrongThread(self.config.model_name, self._owner_name(), f"{attempt} {user}")

    def _owner_name(self) -> str:
        return f"thread {self._owner.name!r} of process {self._pid}"


class _Context:
    """The llama.cpp context and the arrays it reads batches from.

    Attributes:
        n_tokens: Most tokens in a batch.
        causal: Whether the model is causal (each token reads only those before it), so that a text may be computed in
            pieces.
    """

    def __init__(self, config: EngineConfig, weights: Weights, n_tokens: int, in_pieces: bool = False):
        # Powers of two: llama.cpp aborts on an n_ubatch that is not a multiple of n_seq_max.
        n_seq_max = _power_of_two(config.max_batch_size)
        self.n_tokens = max(_power_of_two(n_tokens), n_seq_max)
        self._dim = weights.dim
        self._ranks = weights.pooling == "rank"
        params = c_api.llama_context_default_params()
        # n_ctx holds the whole batch, shared by its texts (kv_unified), so no text is cut to n_ctx / n_seq_max.
        # A bidirectional model reads a batch in one piece, which must then fit one n_ubatch.
        params.n_ctx = params.n_batch = self.n_tokens
        params.n_ubatch = max(CAUSAL_UBATCH, n_seq_max) if in_pieces else self.n_tokens
        params.n_seq_max = n_seq_max
        params.kv_unified = True
        if not weights.causal:
            params.attention_type = c_api.LLAMA_ATTENTION_TYPE_NON_CAUSAL
        params.embeddings = True
        # The head of a reranker is llama.cpp's; all other pooling is ours (`pooling.py`).
        params.pooling_type = c_api.LLAMA_POOLING_TYPE_RANK if self._ranks else c_api.LLAMA_POOLING_TYPE_NONE
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
        # Causal models decode into a memory that must be cleared; encoders have none, or do not use it.
        self._memory: Any = None if weights.encoder else c_api.llama_get_memory(context)
        self.causal = bool(self._memory) and weights.causal
        self._failed = False

        n, pointer = self.n_tokens, ctypes.POINTER
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._seq_ids = np.arange(n_seq_max, dtype=np.int32)
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
        """Compute a batch that fits; the result is not checked.

        Returns:
            Each token's vector, ``(n_tokens, dim) float32``, in llama.cpp's own memory until the next batch; or a
            reranker's scores, ``(n_texts, dim) float32``.
        """
        n_tokens, n_texts = len(batch.tokens), len(batch.lengths)
        text_of_token = np.repeat(np.arange(n_texts), batch.lengths)
        first_token = np.cumsum(batch.lengths) - batch.lengths
        self._tokens[:n_tokens] = batch.tokens
        self._positions[:n_tokens] = np.arange(n_tokens) - first_token[text_of_token]
        self._seq_id_pointers[:n_tokens] = self._seq_ids.ctypes.data + self._seq_ids.itemsize * text_of_token
        self._batch.n_tokens = n_tokens

        c_api.llama_set_n_threads(self._pointer, n_threads, n_threads)
        if self._memory:
            # Values of an earlier batch are masked, but a masked NaN is still one: after a failure memory is wiped.
            c_api.llama_memory_clear(self._memory, self._failed)
            status = c_api.llama_decode(self._pointer, self._batch)
        else:
            status = c_api.llama_encode(self._pointer, self._batch)
        self._failed = True
        if status != 0:
            raise ModelError(f"llama.cpp failed on a batch of {n_texts} texts (status {status}): {last_error()}")
        vectors = self._scores(n_texts) if self._ranks else self._vectors(n_tokens)
        self._failed = bool(self._memory) and not np.isfinite(vectors).all()
        return vectors

    def close(self) -> None:
        self._free()

    def _vectors(self, n_tokens: int) -> Rows:
        pointer = c_api.llama_get_embeddings(self._pointer)
        if not pointer:
            raise ModelError("llama.cpp gave no vectors")
        return np.ctypeslib.as_array(pointer, (n_tokens, self._dim))

    def _scores(self, n_texts: int) -> Rows:
        scores = np.empty((n_texts, self._dim), np.float32)
        for i in range(n_texts):
            pointer = c_api.llama_get_embeddings_seq(self._pointer, i)
            if not pointer:
                raise EmbeddingFailed(i, "llama.cpp gave no score for it")
            scores[i] = np.ctypeslib.as_array(pointer, (self._dim,))
        return scores


def _finite(scores: Rows) -> Rows:
    finite = np.isfinite(scores.sum(axis=1))
    if not finite.all():
        raise EmbeddingFailed(int(np.argmin(finite)), "its score is not finite")
    return scores


def _free(context: Any, _weights: Weights) -> None:
    c_api.llama_free(context)


def _power_of_two(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length()
