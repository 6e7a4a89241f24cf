"""Load a model's weights in order to compute with them.

file ──► amx.may_repack ──► Weights ──► EmbeddingModel, Pool, the sweep of `tuning`
"""

from embellama.config import EngineConfig
from embellama.gguf import amx
from embellama.gguf.weights import Weights


def load_weights(config: EngineConfig) -> Weights:
    """Load `config.model_path`, laid out as this CPU computes fastest without ending the process.

    Raises:
        ConfigError: Layers are wanted on a GPU that this llama.cpp was not built for.
        ModelLoadError: As `Weights` raises it.
    """
    return Weights(config, repack=amx.may_repack(config.model_path))
