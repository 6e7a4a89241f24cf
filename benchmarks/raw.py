"""What llama.cpp itself can do: batches ready as arrays, one context for each thread, and nothing around it.

The limit that everything else is measured against. It shares no code with the library, so that a slow library
cannot make its own limit look slow.
"""

import ctypes
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embellama.llama import c_api

Tokens = NDArray[np.int32]


class Raw:
    """Contexts over one file's weights."""

    def __init__(self, path: str, n_contexts: int, n_threads: int, n_ubatch: int = 512):
        self.model: Any = c_api.llama_model_load_from_file(path.encode(), c_api.llama_model_default_params())
        params = c_api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ubatch
        params.n_seq_max = 64
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings = params.kv_unified = params.no_perf = True
        params.flash_attn_type = c_api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.contexts: list[Any] = [c_api.llama_init_from_model(self.model, params) for _ in range(n_contexts)]
        self.dim = c_api.llama_model_n_embd_out(self.model)

    def texts_per_second(self, texts: Sequence[Tokens], max_tokens: int) -> float:
        """Embed all texts, packed by length into batches of at most `max_tokens`, shared by the contexts."""
        order = sorted(texts, key=len)
        groups: list[list[Tokens]] = [[]]
        for text in order:
            if groups[-1] and (sum(map(len, groups[-1])) + len(text) > max_tokens or len(groups[-1]) == 64):
                groups.append([])
            groups[-1].append(text)
        groups.reverse()  # long ones first: the contexts finish together
        batches = [_Batch(group) for group in groups]
        lock, todo = threading.Lock(), iter(batches)

        def run(context: Any) -> None:
            while True:
                with lock:
                    batch = next(todo, None)
                if batch is None:
                    return
                if self._compute(context, batch.batch) != 0:
                    raise RuntimeError("llama.cpp failed")
                rows = np.empty((batch.n_texts, self.dim), np.float32)
                for i in range(batch.n_texts):
                    row = c_api.llama_get_embeddings_seq(context, i)
                    ctypes.memmove(rows.ctypes.data + i * rows.strides[0], row, rows.strides[0])

        threads = [threading.Thread(target=run, args=(context,)) for context in self.contexts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(texts) / (time.perf_counter() - start)

    def _compute(self, context: Any, batch: Any) -> int:
        if memory := c_api.llama_get_memory(context):  # a decoder's
            c_api.llama_memory_clear(memory, False)
            return int(c_api.llama_decode(context, batch))
        return int(c_api.llama_encode(context, batch))

    def close(self) -> None:
        for context in self.contexts:
            c_api.llama_free(context)
        c_api.llama_model_free(self.model)


class _Batch:
    def __init__(self, texts: Sequence[Tokens]):
        def at(array: NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self.n_texts = len(texts)
        tokens = np.concatenate(texts)
        text_of_token = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        positions = np.concatenate([np.arange(len(text), dtype=np.int32) for text in texts])
        ids = np.arange(len(texts), dtype=np.int32)
        pointers = ids.ctypes.data + 4 * text_of_token
        ones, outputs = np.ones(len(tokens), np.int32), np.ones(len(tokens), np.int8)
        self._alive = (tokens, positions, ids, pointers, ones, outputs)
        self.batch = c_api.llama_batch(
            len(tokens),
            at(tokens, c_api.llama_token),
            None,
            at(positions, c_api.llama_pos),
            at(ones, ctypes.c_int32),
            at(pointers, ctypes.POINTER(c_api.llama_seq_id)),
            at(outputs, ctypes.c_int8),
        )
