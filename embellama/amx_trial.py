"""Compute once with AMX, in a process that may die of it: ``python -m embellama.amx_trial FILE``.

embellama.gguf.amx ──► this process ──► exit status 0, or a signal where this build of llama.cpp breaks AMX
"""

import contextlib
import sys

import numpy as np

from embellama.batch import Batch, RowKind
from embellama.config import EngineConfig
from embellama.errors import EmbeddingFailed
from embellama.gguf.weights import Weights
from embellama.model import EmbeddingModel


def main(path: str) -> None:
    """Compute one batch, large enough for AMX's tiles, with the weights of `path` laid out for them."""
    config = EngineConfig(model_path=path, pooling="none", n_ctx=32).checked()
    # A token without a usable vector is no failure: the products are made all the same.
    with EmbeddingModel(config, Weights(config, repack=True)) as model, contextlib.suppress(EmbeddingFailed):
        model.encode(Batch.join([np.arange(16, dtype=np.int32)], [RowKind.TOKEN]))


if __name__ == "__main__":
    main(sys.argv[1])
