"""Refuse GGUF files that would make llama.cpp end the process.

Header ──► check_header ──► llama_model_load_from_file ──► check_vocabulary ──► Weights

llama.cpp refuses most damaged files itself, and asserts the rest. Without the rules below
`tests/gguf/test_loading.py` has seen processes killed, on the architectures of `tests/tiny`; they prove no file sound.
"""

from collections.abc import Iterator
from typing import Any

from embellama.errors import ModelLoadError
from embellama.gguf.header import Header
from embellama.llama import c_api

# LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS (llama-hparams.h).
_MAX_LAYERS = _MAX_EXPERTS = 512

# Architectures whose tensors llama.cpp (src/models) cuts into heads without having compared their sizes.
_UNCHECKED_HEADS = ("eurobert", "modern-bert", "qwen2")

# Types of ggml's that hold no weights; no layer computes with them.
_NO_WEIGHTS = ("i8", "i16", "i32", "i64", "f64")


def check_header(header: Header) -> None:
    """Raise `ModelLoadError` for what would end the process while a model is loaded or used."""
    for rule in (_layers, _epsilons, _experts, _heads, _windows, _widths, _types, _tokens):
        for fault in rule(header):
            raise ModelLoadError(header.path, fault)


def check_vocabulary(header: Header, vocab: Any) -> None:
    """Raise `ModelLoadError` if a token that goes around texts is not in the vocabulary, which `vocab` points to."""
    word_piece = c_api.llama_vocab_type(vocab) == c_api.LLAMA_VOCAB_TYPE_WPM
    last = c_api.llama_vocab_sep if word_piece else c_api.llama_vocab_eos
    first_wanted = word_piece or c_api.llama_vocab_get_add_bos(vocab)
    last_wanted = word_piece or c_api.llama_vocab_get_add_eos(vocab)
    missing = first_wanted and c_api.llama_vocab_bos(vocab) < 0, last_wanted and last(vocab) < 0
    if any(missing):
        where = "before" if missing[0] else "after"
        raise ModelLoadError(header.path, f"the token to put {where} texts is not in its vocabulary")
    unknown = header.values.get("tokenizer.ggml.unknown_token_id", 0)
    if word_piece and not 0 <= unknown < c_api.llama_vocab_n_tokens(vocab):
        raise ModelLoadError(header.path, f"its unknown token, {unknown}, is not in its vocabulary")


def _layers(header: Header) -> Iterator[str]:
    n = header.count("block_count")
    if n is not None and not 1 <= n <= _MAX_LAYERS:
        yield f"it says it has {n} layers; llama.cpp runs 1 to {_MAX_LAYERS}"


def _epsilons(header: Header) -> Iterator[str]:
    for kind in ("layer_norm", "layer_norm_rms", "group_norm"):
        value = header.get(f"attention.{kind}_epsilon", 0.0)
        if isinstance(value, float) and not value >= 0:
            yield f"its {kind}_epsilon is {value}"


def _experts(header: Header) -> Iterator[str]:
    n, n_used = header.count("expert_count", 0), header.count("expert_used_count", 0)
    if n is None or n_used is None or n == n_used == 0:
        return
    if not 1 <= n_used <= n <= _MAX_EXPERTS:
        yield f"it says it uses {n_used} of {n} experts; llama.cpp knows up to {_MAX_EXPERTS}"


def _heads(header: Header) -> Iterator[str]:
    if header.architecture not in _UNCHECKED_HEADS:
        return
    dim = header.count("embedding_length", 0)
    n = header.count("attention.head_count", 0)
    n_kv = header.count("attention.head_count_kv", n)
    if dim is None or n is None or n_kv is None:  # one for each layer
        return
    if n == 0:
        yield "it says it has no attention heads"
        return
    length = header.count("attention.key_length", dim // n)
    if length is None or length != header.count("attention.value_length", dim // n):
        yield "its heads' keys and values differ in length"
        return
    expected = {"attn_q": n, "attn_k": n_kv, "attn_v": n_kv, "attn_qkv": n + 2 * n_kv, "attn_output": n}
    for name, n_values in header.n_values.items():
        heads = expected.get(name.removesuffix(".weight").rpartition(".")[2])
        if heads and name.endswith(".weight") and n_values != dim * heads * length:
            yield f"{name} has {n_values} values, which are not those of {heads} heads of {length}"


def _windows(header: Header) -> Iterator[str]:
    """Refuse a model of local layers alone, or of global ones alone, where llama.cpp expects both."""
    if header.architecture not in ("gemma-embedding", "modern-bert"):
        return
    every = header.count("attention.sliding_window_pattern", 6 if header.architecture == "gemma-embedding" else 3)
    n_layers = header.count("block_count", 0)
    if every is None or n_layers is None:
        return
    # Of each group of layers, ModernBERT's first one is global, Gemma's last one.
    most = n_layers if header.architecture == "gemma-embedding" else every
    if not 2 <= every <= most:
        yield f"of its {n_layers} layers every {every} is said to be global; there must be local and global ones"


def _widths(header: Header) -> Iterator[str]:
    dim, n_ff = header.count("embedding_length", 0), header.count("feed_forward_length", 0)
    n_out = header.count("embedding_length_out", 0)
    if n_out not in (0, dim) and not any(name.startswith("dense_") for name in header.tensors):
        yield f"its embedding_length_out is {n_out}, but no layer makes that of its embedding length, {dim}"
    if header.architecture == "gemma-embedding":
        for key in ("dense_2_feat_in", "dense_3_feat_out"):
            if header.count(key, 0) not in (0, dim):
                yield f"its {key} is {header.get(key)}, not its embedding length, {dim}"
    if header.architecture == "jina-bert-v2" and dim and n_ff is not None:
        for name, n_values in header.n_values.items():
            if name.endswith(".ffn_up.weight") and n_values not in (dim * n_ff, 2 * dim * n_ff):
                yield f"{name} has {n_values} values, which do not fit a feed-forward length of {n_ff}"


def _types(header: Header) -> Iterator[str]:
    for name, type in header.tensors.items():
        if type in _NO_WEIGHTS:
            yield f"{name} is of type {type}, with which no layer computes"
        elif type != "f32" and (name.endswith(".bias") or "norm" in name):
            yield f"{name} is of type {type}; biases and norms must be f32"


def _tokens(header: Header) -> Iterator[str]:
    if header.repeated_token is not None:
        yield f"its vocabulary has the token {header.repeated_token!r} twice"
    if header.byte_tokens and header.values.get("tokenizer.ggml.model") == "bert":
        yield "its vocabulary is WordPiece, but has tokens for single bytes"
