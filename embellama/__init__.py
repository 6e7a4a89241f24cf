"""Turn text into vectors with GGUF models on llama.cpp.

>>> from embellama import EmbeddingEngine, EngineConfig
>>> config = EngineConfig.builder().with_model_path("models/minilm.gguf").with_model_name("minilm").build()
>>> with EmbeddingEngine(config) as engine:
...     one = engine.embed("minilm", "Hello, world!")
>>> one.shape
(384,)
"""

from embellama.config import EngineConfig
from embellama.engine import EmbeddingEngine
from embellama.errors import (
    ConfigError,
    DeadlineExceeded,
    EmbeddingFailed,
    EmbellamaError,
    EmptyInput,
    InputError,
    InvalidOption,
    InvalidText,
    InvalidToken,
    ModelError,
    ModelLoadError,
    ModelNotFound,
    Overloaded,
    PromptError,
    ServiceError,
    TextTooLong,
    Unavailable,
    WrongThread,
)
from embellama.info import ModelInfo
from embellama.model import EmbeddingModel
from embellama.results import Chunks, Embeddings, Outcomes, Ranked, Ranking

__all__ = [
    "Chunks",
    "ConfigError",
    "DeadlineExceeded",
    "EmbeddingEngine",
    "EmbeddingFailed",
    "EmbeddingModel",
    "Embeddings",
    "EmbellamaError",
    "EmptyInput",
    "EngineConfig",
    "InputError",
    "InvalidOption",
    "InvalidText",
    "InvalidToken",
    "ModelError",
    "ModelInfo",
    "ModelLoadError",
    "ModelNotFound",
    "Outcomes",
    "Overloaded",
    "PromptError",
    "Ranked",
    "Ranking",
    "ServiceError",
    "TextTooLong",
    "Unavailable",
    "WrongThread",
]
__version__ = "0.1.0"
