"""`ModelInfo`: the description of a model, for `EmbeddingEngine.model_info` and `embellama inspect`.

Header, Tokenizer, Prompts ──► ModelInfo
"""

import msgspec

from embellama.config import EngineConfig
from embellama.gguf.compute import memory_bytes
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.pooling import Pooling


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A description of a model: its file, its sizes, and how its vectors are made.

    Attributes:
        name: Its name in calls.
        path: Its file.
        architecture: As llama.cpp names it: ``bert``, ``qwen3``, …
        dim: Length of an embedding, or the number of a reranker's scores for a pair.
        n_ctx: Most tokens of one text, special ones included.
        n_ctx_train: Most tokens the model was trained to read at once.
        pooling: How a text's tokens become one vector; ``rank`` for a reranker.
        normalization: How vectors are scaled.
        quantization: The type of its weights: ``bf16``, ``q8_0``, …
        n_bytes: Size of its weights.
        memory_bytes: Memory that they take, with those that our kernels pack.
        n_parameters: Numbers that its weights are made of.
        compute: What computes its layers: ``llama``, or the instruction set of our kernels.
        prompts: Names of its prompts.
        loaded: Whether it is in memory now.
        changed: Whether its file is no longer the one that was loaded.
    """

    name: str
    path: str
    architecture: str
    dim: int
    n_ctx: int
    n_ctx_train: int
    pooling: Pooling
    normalization: str
    quantization: str
    n_bytes: int
    memory_bytes: int
    n_parameters: int
    compute: str
    prompts: list[str]
    loaded: bool = False
    changed: bool = False

    @classmethod
    def of(cls, config: EngineConfig, jobs: Jobs, weights: Weights) -> "ModelInfo":
        """Describe a model, given a checked config whose `compute` is chosen."""
        header = weights.header
        return cls(
            name=config.model_name,
            path=config.model_path,
            architecture=header.architecture,
            dim=weights.dim,
            n_ctx=jobs.tokenizer.limit,
            n_ctx_train=weights.n_ctx_train,
            pooling=weights.pooling,
            normalization=config.normalization,
            quantization=header.quantization,
            n_bytes=header.n_bytes,
            memory_bytes=memory_bytes(header, config.compute),
            n_parameters=sum(header.n_values.values()),
            compute=config.compute,
            prompts=jobs.prompts.names,
        )
