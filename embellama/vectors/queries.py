"""Embed texts so that their vectors can be compared with those of an output: by the same model, as many numbers."""

from collections.abc import Sequence

import msgspec
import numpy as np

from embellama.bulk.manifest import Manifest
from embellama.cache.key import weights_hash
from embellama.config import EngineConfig
from embellama.engine import EmbeddingEngine
from embellama.errors import ConfigError, InputError
from embellama.vectors.block import Floats
from embellama.vectors.stored import BITS, StoredVectors


def embed_for(stored: StoredVectors, config: EngineConfig, texts: Sequence[str], prompt: str | None) -> Floats:
    """Embed texts with the model of `config`.

    Args:
        stored: What they will be compared with.
        config: The model. A pooling that it leaves open is that of the output.
        texts: The texts.
        prompt: Name of the prompt to write around each; None for none.

    Returns:
        ``(n_texts, stored.dim) float32``. Floats, whatever the dtype of the output: a query in full beside rows in
        bytes or bits finds more than one that is rounded as they are.

    Raises:
        ConfigError: The model is not the one that made the output, or gives vectors of another length.
        ModelLoadError, InputError, EmbeddingFailed: As `EmbeddingEngine` raises them.
    """
    dimensions = None
    if stored.manifest:
        config = _as_made(stored, stored.manifest, config)
        dimensions = stored.manifest.options.get("dimensions")
    with EmbeddingEngine(config) as engine:
        rows = engine.embed_batch(config.model_name, texts, prompt=prompt, dimensions=dimensions)
    n_filled = stored.dim - rows.shape[1]
    if stored.dtype in BITS and 0 < n_filled < 8:  # bits that fill the last byte
        rows = np.pad(rows, ((0, 0), (0, n_filled)))
    if rows.shape[1] != stored.dim:
        raise ConfigError(f"{stored.path} has {stored.dim} dimensions and {config.model_path} gives {rows.shape[1]}")
    return np.asarray(rows, np.float32)


def _as_made(stored: StoredVectors, manifest: Manifest, config: EngineConfig) -> EngineConfig:
    """Return the config with the output's pooling; raise `ConfigError` if its model is another one."""
    made = manifest.model.get("weights_sha256")
    if made and made != (given := weights_hash(config.model_path).hex()):
        name = manifest.model.get("name")
        raise ConfigError(
            f"{stored.path} was made with another model: its weights are {name!r}, {made}; "
            f"those of {config.model_path} are {given}"
        )
    pooling = manifest.model.get("settings", {}).get("pooling", "auto")
    if config.pooling == "auto":
        return msgspec.structs.replace(config, pooling=pooling)
    if config.pooling != pooling:
        raise ConfigError(f"pooling is {config.pooling!r}; that of {stored.path} is {pooling!r}")
    return config


def check_texts(texts: Sequence[str], what: str) -> None:
    """Raise `InputError` if there are none, or one is empty."""
    if not texts:
        raise InputError(f"there is no {what}")
    for number, text in enumerate(texts):
        if not text.strip():
            raise InputError(f"{what} {number} is empty")
