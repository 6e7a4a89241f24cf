"""Load a model's weights in order to compute with them.

file ──► compute.choose, amx.may_repack ──► Weights ──► EmbeddingModel, Pool, the sweep of `tuning`
"""

from embellama.config import EngineConfig
from embellama.gguf import amx, compute
from embellama.gguf.weights import Weights


def load_weights(config: EngineConfig, memory: int | None = None) -> Weights:
    """Load `config.model_path`, laid out as this CPU computes fastest without ending the process.

    Args:
        memory: File descriptor of `SharedWeights`, where processes share the weights that our kernels pack.

    Raises:
        ConfigError: Layers are wanted on a GPU that this llama.cpp was not built for, or an instruction set that this
            CPU does not have.
        ModelLoadError: As `Weights` raises it.
    """
    chosen = compute.choose(config).compute
    if chosen == "llama":
        return Weights(config, repack=amx.may_repack(config.model_path))
    return Weights(config, kernels=chosen, memory=memory)
