"""What follows the token vectors: pooling, projections, a reranker's head."""

from typing import Any

import gguf
import numpy as np

from tests.forward.model import Model
from tests.forward.parts import Array, gelu, softmax


def project(model: Model, x: Array) -> Array:
    """Apply an EmbeddingGemma's two projections where the file has them."""
    if "dense_2" not in model:
        return x
    return model.linear("dense_3", model.linear("dense_2", x))


def pool(model: Model, x: Array) -> Array:
    """Turn the token vectors of one text, ``(n_tokens, dim)``, into one, ``(dim,)``."""
    return _pool(model.get(f"{model.architecture}.pooling_type"), x)


def score(model: Model, x: Array) -> Array:
    """Apply a reranker's head to the token vectors of one text, ``(n_scores,)``."""
    if model.architecture == "qwen3":
        return softmax(model.linear("cls.output", x[-1]))
    if model.architecture == "modern-bert":
        first = _pool(model.get("modern-bert.classifier.pooling_type"), x)
        return model.linear("cls.output", model.layer_norm("cls.norm", gelu(model.linear("cls", first))))
    read: Array = np.tanh(model.linear("cls", x[0]))
    return model.linear("cls.output", read) if "cls.output" in model else read


def _pool(pooling: Any, x: Array) -> Array:
    if pooling == gguf.PoolingType.MEAN:
        return np.asarray(x.mean(0))
    return np.asarray(x[0] if pooling == gguf.PoolingType.CLS else x[-1])
