"""`EmbedTexts` that tells where it runs and takes its time, so that it can be killed in the middle."""

import os
import time
from pathlib import Path
from typing import Any

import ray

from embellama.ray import EmbedTexts

PAUSE_S = 0.05


class SlowEmbedTexts(EmbedTexts):
    """Leaves a file named by its process and its node."""

    def __init__(self, folder: str, **settings: Any):
        super().__init__(**settings)
        (Path(folder) / f"{os.getpid()}.{ray.get_runtime_context().get_node_id()}").touch()

    def __call__(self, batch: Any) -> Any:
        time.sleep(PAUSE_S)
        return super().__call__(batch)
