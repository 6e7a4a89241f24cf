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
    InvalidText,
    InvalidToken,
    ModelError,
    ModelLoadError,
    ModelNotFound,
    Overloaded,
    ServiceError,
    TextTooLong,
    Unavailable,
    WrongThread,
)
from embellama.model import EmbeddingModel

__all__ = [
    "ConfigError",
    "DeadlineExceeded",
    "EmbeddingEngine",
    "EmbeddingFailed",
    "EmbeddingModel",
    "EmbellamaError",
    "EmptyInput",
    "EngineConfig",
    "InputError",
    "InvalidText",
    "InvalidToken",
    "ModelError",
    "ModelLoadError",
    "ModelNotFound",
    "Overloaded",
    "ServiceError",
    "TextTooLong",
    "Unavailable",
    "WrongThread",
]
__version__ = "0.1.0"
