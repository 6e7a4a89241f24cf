"""`Weights`: a GGUF file loaded into memory, shared by all contexts.

file ── Header ──► Weights ──► Tokenizer (vocabulary)
                      └──────► EmbeddingModel, one for each thread

Read-only once loaded, so any thread may use it; llama.cpp maps the file, so processes share it too.
"""

import contextlib
import os
import threading
import weakref
from typing import Any

from embellama.config import EngineConfig
from embellama.errors import ConfigError, ModelLoadError
from embellama.gguf.header import Header
from embellama.gguf.soundness import check_header, check_vocabulary
from embellama.kernels import library
from embellama.llama import c_api, last_error
from embellama.machine.devices import GPU_BUILD, gpu_build
from embellama.pooling import Pooling

# enum llama_pooling_type (llama.h), as a GGUF's `{architecture}.pooling_type`.
_POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")

_loading = threading.Lock()  # llama.cpp tells why a load failed in one log for the whole process


class Weights:
    """One model file, loaded.

    Attributes:
        header: The file's metadata and list of tensors.
        model: llama.cpp's pointer to the model.
        vocab: llama.cpp's pointer to its vocabulary.
        pooling: How a text's tokens become one vector: as the config says, or else the file.
        dim: Length of an embedding, or the number of a reranker's scores for a pair.
        n_ctx_train: Most tokens the model was trained to read at once.
        encoder: Whether the model is the encoder of an encoder-decoder (T5).
        causal: Whether each token attends only to those before it, as the file says; the files of encoders may not say.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        vocab_only: bool = False,
        repack: bool = False,
        kernels: str = "",
        memory: int | None = None,
    ):
        """Load `config.model_path`. To compute with it, use `load_weights`, which knows `repack` and `kernels`.

        Args:
            vocab_only: Load just what a `Tokenizer` needs.
            repack: Let llama.cpp lay weights out anew for this CPU: faster, but it ends the process where AMX is
                broken (`embellama.gguf.amx`). Otherwise they stay as they are in the file.
            kernels: Instruction set of our kernels, which pack the weights for themselves; by default llama.cpp's own
                code computes.
            memory: File descriptor of `SharedWeights`, where what is packed is shared with other processes.

        Raises:
            ConfigError: Layers are wanted on a GPU that this llama.cpp was not built for.
            ModelLoadError: The file is missing, unreadable, not GGUF, no model llama.cpp can load, or does not say
                how a text becomes one vector.
        """
        self.path = config.model_path
        check_gpu(config.n_gpu_layers)
        self.header = Header(self.path)
        self.pooling = pooling_of(self.header, config.pooling)
        self.n_ctx_train: int = self.header.count("context_length") or 0
        if not self.n_ctx_train:
            raise ModelLoadError(self.path, "it does not say its context length")
        self.dim = dim_of(self.header, self.pooling)
        check_header(self.header)
        if not self.header.tensors and not vocab_only:
            raise ModelLoadError(self.path, "it has a vocabulary, but no weights")

        params = c_api.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = config.n_gpu_layers
        params.use_extra_bufts = repack
        self.model = self._load(params, kernels, memory)
        self.vocab: Any = c_api.llama_model_get_vocab(self.model)
        if c_api.llama_vocab_type(self.vocab) == c_api.LLAMA_VOCAB_TYPE_NONE:
            raise ModelLoadError(self.path, "it has no vocabulary")
        check_vocabulary(self.header, self.vocab)
        self.encoder = bool(c_api.llama_model_has_encoder(self.model))
        # llama.cpp's converter leaves it out for llama-embed, which is bidirectional.
        self.causal: bool = self.header.get("attention.causal", self.header.architecture != "llama-embed")

    def _load(self, params: Any, kernels: str, memory: int | None) -> Any:
        files = {*self.header.files.values()}
        ours = library().loading(params, kernels, files, memory) if kernels else contextlib.nullcontext()
        with _loading, ours:
            last_error()
            model = c_api.llama_model_load_from_file(os.fsencode(self.path), params)
            if not model:
                raise ModelLoadError(self.path, last_error() or "llama.cpp does not say why")
        # Freed with the last reference: a context, a tokenizer or a caller may still be using it. Not at exit, when
        # threads may be in the middle of a batch.
        weakref.finalize(self, c_api.llama_model_free, model).atexit = False
        return model


def pooling_of(header: Header, wanted: str) -> Pooling:
    """Return how a text's tokens become one vector: as `wanted`, or for "auto" as the file says.

    Raises:
        ModelLoadError: The file does not say, or has no head to rank with.
    """
    stored = header.count("pooling_type")
    if wanted != "auto":
        pooling: Pooling = wanted  # type: ignore[assignment]
    elif stored is None:
        chat = "; it has a chat template, so it may be no embedding model" if is_chat_model(header) else ""
        raise ModelLoadError(
            header.path,
            "it names no pooling type, so how a text becomes one vector is not known; set pooling (mean, cls, last) "
            f"to what its authors say{chat}",
        )
    elif not 0 <= stored < len(_POOLINGS):
        raise ModelLoadError(header.path, f"its pooling type is {stored}; 0 to {len(_POOLINGS) - 1} are known")
    else:
        pooling = _POOLINGS[stored]
    if pooling == "rank" and not has_head(header):
        raise ModelLoadError(header.path, "pooling is rank, but it has no classification head (cls tensors)")
    return pooling


def dim_of(header: Header, pooling: Pooling) -> int:
    """Return the length of an embedding, or the number of a reranker's scores for a pair.

    Raises:
        ModelLoadError: The file does not say.
    """
    dim = header.count("embedding_length_out") or header.count("embedding_length") or 0
    if not dim:
        raise ModelLoadError(header.path, "it does not say its embedding length")
    return int(header.get("classifier.output_labels", 1)) if pooling == "rank" else dim


def has_head(header: Header) -> bool:
    """Tell whether a model has the head of a reranker."""
    return "cls.weight" in header.tensors or "cls.output.weight" in header.tensors


def is_chat_model(header: Header) -> bool:
    """Tell whether a model has a chat template, and so is likely to be no embedding model."""
    return "tokenizer.chat_template" in header.values


def check_gpu(n_gpu_layers: int) -> None:
    """Raise `ConfigError` if layers are wanted on a GPU and this llama.cpp was built without any."""
    if n_gpu_layers and not gpu_build():
        raise ConfigError(f"n_gpu_layers is {n_gpu_layers}, but this llama.cpp knows no GPU; {GPU_BUILD}")
