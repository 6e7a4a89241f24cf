"""The encoder of T5 (Raffel et al., 2019), with the gated GELU of version 1.1 where the file has a gate."""

import math

import numpy as np

from tests.forward.model import Model
from tests.forward.parts import Array, Tokens, attention, distances, gelu_tanh, heads, relu


def encoder(model: Model, tokens: Tokens) -> Array:
    n_heads = int(model.number("attention.head_count"))
    # The first layer's biases serve every layer.
    rows = model["enc.blk.0.attn_rel_b"][_buckets(len(tokens), int(model.number("attention.relative_buckets_count")))]
    bias = np.moveaxis(rows, -1, 0)
    x = model["token_embd"][list(tokens)]
    for i in range(model.n_layers):
        layer = f"enc.blk.{i}"
        normed = model.rms_norm(f"{layer}.attn_norm", x)
        q, k, v = (heads(model.linear(f"{layer}.attn_{name}", normed), n_heads) for name in "qkv")
        x = x + model.linear(f"{layer}.attn_o", attention(q, k, v, scale=1.0, bias=bias))
        normed = model.rms_norm(f"{layer}.ffn_norm", x)
        up = model.linear(f"{layer}.ffn_up", normed)
        gated = f"{layer}.ffn_gate" in model
        middle = gelu_tanh(model.linear(f"{layer}.ffn_gate", normed)) * up if gated else relu(up)
        x = x + model.linear(f"{layer}.ffn_down", middle)
    return model.rms_norm("enc.output_norm", x)


def _buckets(n_tokens: int, n_buckets: int) -> Array:
    """Return the bucket of each token as another sees it, ``(n_tokens, n_tokens) int``.

    Half the buckets are for tokens before, half for those after. Of each half, one half is for a distance each, the
    other for ranges that grow up to 128, and the last one for all beyond.
    """
    behind = distances(n_tokens)
    side = n_buckets // 2
    exact = side // 2
    far = np.maximum(np.abs(behind), exact)
    # Rounded, because a logarithm that should be whole may come out a hair below.
    steps = np.round(np.log(far / exact) / math.log(128 / exact) * (side - exact), 9)
    ranged = np.minimum(exact + np.floor(steps).astype(int), side - 1)
    return np.where(behind < 0, side, 0) + np.where(np.abs(behind) < exact, np.abs(behind), ranged)
