"""What transformers are made of."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Tokens: TypeAlias = Sequence[int] | NDArray[np.int32]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(x: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon))


def rms_norm(x: Array, epsilon: float) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon))


def gelu(x: Array) -> Array:
    """Return x times the normal distribution up to x (Hendrycks and Gimpel, 2016)."""
    return np.asarray(x * 0.5 * (1 + _erf(x / math.sqrt(2))))


def gelu_tanh(x: Array) -> Array:
    """Return the same paper's approximation, which T5 and Gemma were trained with."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def heads(x: Array, n_heads: int) -> Array:
    """Return ``(n_tokens, n_heads * width)`` as ``(n_heads, n_tokens, width)``."""
    return x.reshape(len(x), n_heads, -1).swapaxes(0, 1)


def attention(q: Array, k: Array, v: Array, *, scale: float | None = None, bias: Array | float = 0.0) -> Array:
    """Let each token read from the others.

    Args:
        q: Queries, ``(n_heads, n_tokens, width)``.
        k: Keys, ``(n_kv_heads, n_tokens, width)``; each serves as many queries' heads in a row.
        v: Values, likewise.
        scale: What products of queries and keys are multiplied by; one over the root of the width by default.
        bias: Added to them, ``(n_tokens, n_tokens)`` or one such for each head; -inf hides a token.

    Returns:
        ``(n_tokens, n_heads * width)``.
    """
    share = len(q) // len(k)
    k, v = np.repeat(k, share, 0), np.repeat(v, share, 0)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    read = softmax(scale * (q @ k.swapaxes(1, 2)) + bias) @ v
    return read.swapaxes(0, 1).reshape(q.shape[1], -1)


def distances(n_tokens: int) -> NDArray[np.int64]:
    """Return how far behind a token each other one is, ``(n_tokens, n_tokens)``: row minus column."""
    positions = np.arange(n_tokens)
    return positions[:, None] - positions[None, :]


def hide(where: NDArray[np.bool_]) -> Array:
    """Return a bias for `attention` that hides tokens."""
    return np.where(where, -np.inf, 0.0)


def rope(x: Array, base: float, *, neighbours: bool = False) -> Array:
    """Turn queries or keys by their positions (Su et al., 2021).

    Args:
        x: ``(n_heads, n_tokens, width)``.
        base: The slowest pair turns about ``1 / base`` a token.
        neighbours: Pair values 0 and 1, 2 and 3, …, as in the paper; otherwise the first of either half, and so on.
    """
    n_tokens, width = x.shape[1:]
    turns = np.arange(n_tokens)[:, None] * base ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(turns), np.sin(turns)
    turned = np.empty_like(x)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if neighbours else (slice(width // 2), slice(width // 2, None))
    )
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


def alibi(n_heads: int, n_tokens: int) -> Array:
    """Return ALiBi's bias for attention both ways, ``(n_heads, n_tokens, n_tokens)`` (Press et al., 2021)."""

    def slopes(n: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]

    # With heads that are no power of two, the remaining ones take every other slope of twice as many heads.
    power = 1 << (n_heads.bit_length() - 1)
    of_heads = slopes(power) + slopes(2 * power)[0::2][: n_heads - power]
    return -np.array(of_heads)[:, None, None] * np.abs(distances(n_tokens))
