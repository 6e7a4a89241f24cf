"""Models that put a norm before each half of a layer.

tokens ── embeddings ──► layers: norm, attention, add, norm, feed-forward, add ──► norm ──► token vectors

ModernBERT: Warner et al. (2024); NeoBERT: Le Breton et al. (2025); EuroBERT: Boizard et al. (2025); EmbeddingGemma:
Vera et al. (2025); Llama: Touvron et al. (2023); Qwen3: Yang et al. (2025).
"""

import math
from collections.abc import Callable

import numpy as np

from tests.forward.model import Model
from tests.forward.parts import Array, Tokens, attention, distances, gelu, gelu_tanh, heads, hide, rope, silu


def modern_bert(model: Model, tokens: Tokens) -> Array:
    n_heads = int(model.number("attention.head_count"))
    activation = {"gelu": gelu, "silu": silu}[model.get("modern-bert.hidden_activation", "gelu")]
    every = int(model.number("attention.sliding_window_pattern"))
    x = model.layer_norm("token_embd_norm", model["token_embd"][list(tokens)])
    for i in range(model.n_layers):
        layer = f"blk.{i}"
        # The embeddings have been normalised, so the first layer does not do it again.
        normed = model.layer_norm(f"{layer}.attn_norm", x) if i > 0 else x
        is_global = i % every == 0
        q, k, v = (heads(part, n_heads) for part in np.split(model.linear(f"{layer}.attn_qkv", normed), 3, -1))
        base = model.number("rope.freq_base" if is_global else "rope.freq_base_swa")
        read = attention(rope(q, base), rope(k, base), v, bias=0.0 if is_global else _near(model, len(tokens)))
        x = x + model.linear(f"{layer}.attn_output", read)
        gate, up = np.split(model.linear(f"{layer}.ffn_up", model.layer_norm(f"{layer}.ffn_norm", x)), 2, -1)
        x = x + model.linear(f"{layer}.ffn_down", activation(gate) * up)
    return model.layer_norm("output_norm", x)


def neo_bert(model: Model, tokens: Tokens) -> Array:
    n_heads = int(model.number("attention.head_count"))
    base = model.number("rope.freq_base")
    x = model["token_embd"][list(tokens)]
    for i in range(model.n_layers):
        layer = f"blk.{i}"
        # In GGUF, all heads' queries, then keys, then values; in its authors' files, each head's three together.
        qkv = model.linear(f"{layer}.attn_qkv", model.rms_norm(f"{layer}.attn_norm", x))
        q, k, v = (heads(part, n_heads) for part in np.split(qkv, 3, -1))
        read = attention(rope(q, base, neighbours=True), rope(k, base, neighbours=True), v)
        x = x + model.linear(f"{layer}.attn_output", read)
        gate, up = np.split(model.linear(f"{layer}.ffn_up", model.rms_norm(f"{layer}.ffn_norm", x)), 2, -1)
        x = x + model.linear(f"{layer}.ffn_down", silu(gate) * up)
    return model.rms_norm("enc.output_norm", x)


def eurobert(model: Model, tokens: Tokens) -> Array:
    return _decoder_layers(model, tokens)


def llama_embed(model: Model, tokens: Tokens) -> Array:
    # GGUF keeps Llama's own order of values, in which RoPE turns neighbours; Hugging Face's files have another.
    return _decoder_layers(model, tokens, neighbours=True)


def llama(model: Model, tokens: Tokens) -> Array:
    return _decoder_layers(model, tokens, bias=_before(len(tokens)), neighbours=True)


def qwen(model: Model, tokens: Tokens) -> Array:
    causal = model.get(f"{model.architecture}.attention.causal", True)
    return _decoder_layers(model, tokens, bias=_before(len(tokens)) if causal else 0.0)


def _decoder_layers(model: Model, tokens: Tokens, *, bias: Array | float = 0.0, neighbours: bool = False) -> Array:
    base = model.number("rope.freq_base")
    x = model["token_embd"][list(tokens)]
    for i in range(model.n_layers):
        layer = f"blk.{i}"
        q, k, v = _grouped(model, layer, model.rms_norm(f"{layer}.attn_norm", x))
        read = attention(rope(q, base, neighbours=neighbours), rope(k, base, neighbours=neighbours), v, bias=bias)
        x = x + model.linear(f"{layer}.attn_output", read)
        x = x + _gated(model, layer, model.rms_norm(f"{layer}.ffn_norm", x), silu)
    return model.rms_norm("output_norm", x)


def gemma(model: Model, tokens: Tokens) -> Array:
    every = int(model.number("attention.sliding_window_pattern"))
    embeddings = model["token_embd"]
    x = embeddings[list(tokens)] * math.sqrt(embeddings.shape[1])
    for i in range(model.n_layers):
        layer = f"blk.{i}"
        is_global = i % every == every - 1
        q, k, v = _grouped(model, layer, model.rms_norm(f"{layer}.attn_norm", x))
        base = model.number("rope.freq_base" if is_global else "rope.freq_base_swa")
        read = attention(rope(q, base), rope(k, base), v, bias=0.0 if is_global else _near(model, len(tokens)))
        x = x + model.rms_norm(f"{layer}.post_attention_norm", model.linear(f"{layer}.attn_output", read))
        fed = _gated(model, layer, model.rms_norm(f"{layer}.ffn_norm", x), gelu_tanh)
        x = x + model.rms_norm(f"{layer}.post_ffw_norm", fed)
    return model.rms_norm("output_norm", x)


def _grouped(model: Model, layer: str, x: Array) -> tuple[Array, Array, Array]:
    """Return queries, and keys and values of which there may be fewer; normed by head where the model does so."""
    n_kv_heads = int(model.number("attention.head_count_kv"))
    q = heads(model.linear(f"{layer}.attn_q", x), int(model.number("attention.head_count")))
    k = heads(model.linear(f"{layer}.attn_k", x), n_kv_heads)
    v = heads(model.linear(f"{layer}.attn_v", x), n_kv_heads)
    if f"{layer}.attn_q_norm" in model:
        q, k = model.rms_norm(f"{layer}.attn_q_norm", q), model.rms_norm(f"{layer}.attn_k_norm", k)
    return q, k, v


def _gated(model: Model, layer: str, x: Array, activation: Callable[[Array], Array]) -> Array:
    gate, up = model.linear(f"{layer}.ffn_gate", x), model.linear(f"{layer}.ffn_up", x)
    return model.linear(f"{layer}.ffn_down", activation(gate) * up)


def _near(model: Model, n_tokens: int) -> Array:
    """Hide what is further away than half the window."""
    half = int(model.number("attention.sliding_window")) // 2
    return hide(np.abs(distances(n_tokens)) > half)


def _before(n_tokens: int) -> Array:
    """Hide what comes later."""
    return hide(distances(n_tokens) < 0)
