"""Vectors of tokens computed by a model's definition, to compare the engine's with."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embellama import EmbeddingEngine, EngineConfig
from tests.forward import forward
from tests.forward.model import Model

Array = NDArray[Any]

# Tokens of "red three blue one" in each kind of vocabulary and of special tokens.
PIECES = {
    "bert-mean": ["[CLS]", "▁red", "▁three", "▁blue", "▁one", "[SEP]"],
    "t5encoder": ["▁red", "▁three", "▁blue", "▁one", "</s>"],
    "xlm-roberta": ["<s>", "▁red", "▁three", "▁blue", "▁one", "</s>"],
    "modern-bert": ["[CLS]", "red", "Ġthree", "Ġblue", "Ġone", "[SEP]"],
    "qwen3": ["red", "Ġthree", "Ġblue", "Ġone", "<|endoftext|>"],
    "llama-embed": ["<|begin_of_text|>", "red", "Ġthree", "Ġblue", "Ġone"],
    "gemma-embedding-dense": ["<bos>", "red", "▁three", "▁blue", "▁one", "<eos>"],
    "mistral": ["<s>", "▁red", "▁three", "▁blue", "▁one", "</s>"],
}
TEXT = "red three blue one"
NAMES = list(PIECES)


def engine_of(path: Path | str, **settings: Any) -> EmbeddingEngine:
    settings = {"model_name": "tiny", "num_workers": 1, "n_threads": 1, **settings}
    return EmbeddingEngine(EngineConfig(model_path=str(path), **settings))


def token_vectors(path: Path, pieces: list[str]) -> Array:
    """Compute a text's token vectors by the definition, ``(n_tokens, dim)``."""
    vocabulary = Model(path).get("tokenizer.ggml.tokens")
    return forward(path, [vocabulary.index(piece) for piece in pieces])


def first_of(name: str) -> int:
    """Count the special tokens before a text."""
    return int(PIECES[name][0].strip("▁") != "red")


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def assert_alike(rows: Array, expected: Array) -> None:
    """Check that vectors are those expected, length included, but for llama.cpp's rounding."""
    assert rows.shape == expected.shape
    assert (np.linalg.norm(rows - expected, axis=-1) < 0.015 * np.linalg.norm(expected, axis=-1)).all()
