"""BERT and what has grown from it: a norm after each half of a layer.

tokens ── embeddings, norm ──► layers: attention, add, norm, feed-forward, add, norm ──► token vectors

Devlin et al. (2018); jina-embeddings 2: Günther et al. (2023), and 3: Sturua et al. (2024); Nomic Embed: Nussbaum et
al. (2024), and its mixture of experts: Nussbaum and Duderstadt (2025).
"""

from collections.abc import Callable

import numpy as np

from tests.forward.model import Model
from tests.forward.parts import Array, Tokens, alibi, attention, gelu, heads, rope, silu, softmax


def bert(model: Model, tokens: Tokens) -> Array:
    positions = model["position_embd"][: len(tokens)]

    def attend(layer: str, x: Array) -> Array:
        return attention(*_qkv(model, layer, x))

    return _layers(model, _embeddings(model, tokens, positions), attend, lambda layer, x: _ffn(model, layer, x))


def jina_v2(model: Model, tokens: Tokens) -> Array:
    n_heads = int(model.number("attention.head_count"))
    bias = alibi(n_heads, len(tokens))

    def attend(layer: str, x: Array) -> Array:
        q, k, v = (model.linear(f"{layer}.attn_{name}", x) for name in "qkv")
        if f"{layer}.attn_q_norm" in model:  # all heads of a token at once
            q, k = model.layer_norm(f"{layer}.attn_q_norm", q), model.layer_norm(f"{layer}.attn_k_norm", k)
        return attention(heads(q, n_heads), heads(k, n_heads), heads(v, n_heads), bias=bias)

    def feed_forward(layer: str, x: Array) -> Array:
        up = model.linear(f"{layer}.ffn_up", x)
        if f"{layer}.ffn_gate" in model:
            gate = model.linear(f"{layer}.ffn_gate", x)
        else:
            gate, up = np.split(up, 2, -1)
        return model.linear(f"{layer}.ffn_down", gelu(gate) * up)

    return _layers(model, _embeddings(model, tokens), attend, feed_forward)


def jina_v3(model: Model, tokens: Tokens) -> Array:
    return _layers(model, _embeddings(model, tokens), _turned(model), lambda layer, x: _ffn(model, layer, x))


def nomic(model: Model, tokens: Tokens) -> Array:
    def feed_forward(layer: str, x: Array) -> Array:
        gate, up = model.linear(f"{layer}.ffn_gate", x), model.linear(f"{layer}.ffn_up", x)
        return model.linear(f"{layer}.ffn_down", silu(gate) * up)

    return _layers(model, _embeddings(model, tokens), _turned(model), feed_forward)


def nomic_moe(model: Model, tokens: Tokens) -> Array:
    n_used = int(model.number("expert_used_count"))

    def feed_forward(layer: str, x: Array) -> Array:
        if f"{layer}.ffn_gate_inp" not in model:
            return _ffn(model, layer, x)
        shares = softmax(model.linear(f"{layer}.ffn_gate_inp", x))
        mixed = np.zeros_like(x)
        for token, share in enumerate(shares):
            # Shares keep what they are of all experts: they do not add up to one.
            for expert in np.argsort(share)[-n_used:]:
                middle = gelu(model[f"{layer}.ffn_up_exps"][expert] @ x[token])
                mixed[token] += share[expert] * (model[f"{layer}.ffn_down_exps"][expert] @ middle)
        return mixed

    return _layers(model, _embeddings(model, tokens), _turned(model), feed_forward)


def _embeddings(model: Model, tokens: Tokens, positions: Array | float = 0.0) -> Array:
    # One text is all of token type 0.
    x = model["token_embd"][list(tokens)] + model["token_types"][0] + positions
    return model.layer_norm("token_embd_norm", x)


def _layers(
    model: Model, x: Array, attend: Callable[[str, Array], Array], feed_forward: Callable[[str, Array], Array]
) -> Array:
    for i in range(model.n_layers):
        layer = f"blk.{i}"
        read = model.linear(f"{layer}.attn_output", attend(layer, x))
        middle = model.layer_norm(f"{layer}.attn_output_norm", x + read)
        if f"{layer}.attn_norm_2" in model:
            middle = model.layer_norm(f"{layer}.attn_norm_2", x + middle)
        x = model.layer_norm(f"{layer}.layer_output_norm", middle + feed_forward(layer, middle))
    return x


def _qkv(model: Model, layer: str, x: Array) -> tuple[Array, Array, Array]:
    n_heads = int(model.number("attention.head_count"))
    if f"{layer}.attn_qkv" in model:
        q, k, v = np.split(model.linear(f"{layer}.attn_qkv", x), 3, -1)
    else:
        q, k, v = (model.linear(f"{layer}.attn_{name}", x) for name in "qkv")
    return heads(q, n_heads), heads(k, n_heads), heads(v, n_heads)


def _turned(model: Model) -> Callable[[str, Array], Array]:
    """Return attention whose queries and keys are turned by their positions."""
    base = model.number("rope.freq_base")

    def attend(layer: str, x: Array) -> Array:
        q, k, v = _qkv(model, layer, x)
        return attention(rope(q, base), rope(k, base), v)

    return attend


def _ffn(model: Model, layer: str, x: Array) -> Array:
    return model.linear(f"{layer}.ffn_down", gelu(model.linear(f"{layer}.ffn_up", x)))
