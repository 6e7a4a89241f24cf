"""A GGUF file in memory: what contexts share.

file ── Weights ──► Tokenizer (vocabulary)
             └────► EmbeddingModel, one for each thread

Read-only once loaded, so any thread may use it; llama.cpp maps the file, so processes share it too.
"""

import ctypes
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from embellama.config import EngineConfig
from embellama.errors import ModelLoadError
from embellama.llama import c_api, last_error

# Weights are not laid out for AMX's tiles: where `_tile_loadconfig` tells the compiler of 8 of its 64 bytes (GCC bug
# 114098; Debian 12's GCC 12.2 has it), their first product ends the process, and no call says who compiled llama.cpp.
AMX = b"AMX_INT8 = 1" in c_api.llama_print_system_info()

_loading = threading.Lock()  # llama.cpp tells why a load failed in one log for the whole process


class Weights:
    """One model file, loaded.

    Attributes:
        path: The file.
        model: llama.cpp's pointer to the model.
        vocab: llama.cpp's pointer to its vocabulary.
        dim: Length of an embedding.
        n_ctx_train: Most tokens the model was trained to read at once.
    """

    def __init__(self, config: EngineConfig, *, vocab_only: bool = False):
        """Load `config.model_path`; with `vocab_only`, just what a `Tokenizer` needs.

        Raises:
            ModelLoadError: The file is missing, unreadable, not GGUF, or not a model llama.cpp can load.
        """
        self.path = config.model_path
        _check_file(Path(self.path))
        params = c_api.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = config.n_gpu_layers
        params.use_extra_bufts = not AMX
        with _loading:
            last_error()
            model = c_api.llama_model_load_from_file(os.fsencode(self.path), params)
            if not model:
                raise ModelLoadError(self.path, last_error() or "llama.cpp does not say why")
        # Freed with the last reference: a context, a tokenizer or a caller may still be using it. Not at exit, when
        # threads may be in the middle of a batch.
        weakref.finalize(self, c_api.llama_model_free, model).atexit = False
        self.model: Any = model
        self.vocab: Any = c_api.llama_model_get_vocab(model)
        # From the file's metadata: llama.cpp does not fill its own in when it loads just the vocabulary.
        self.n_ctx_train = self._number("context_length")
        self.dim = self._number("embedding_length_out") or self._number("embedding_length")
        if c_api.llama_vocab_type(self.vocab) == c_api.LLAMA_VOCAB_TYPE_NONE:
            raise ModelLoadError(self.path, "it has no vocabulary")
        if not self.n_ctx_train or not self.dim:
            raise ModelLoadError(self.path, "it does not say its context length or embedding length")

    def metadata(self, key: str) -> str | None:
        """Return the GGUF's value for `key`, as llama.cpp prints it, or None."""
        buffer = ctypes.create_string_buffer(1024)
        n = c_api.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return None if n < 0 else buffer.value.decode("utf-8", "replace")

    def _number(self, key: str) -> int:
        return int(self.metadata(f"{self.metadata('general.architecture')}.{key}") or 0)


def _check_file(path: Path) -> None:
    """Say what is wrong with `path` in words; llama.cpp's own are about offsets and pointers."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(str(path), error.strerror or str(error)) from None
    if magic != b"GGUF":
        raise ModelLoadError(str(path), f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
