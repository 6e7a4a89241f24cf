"""Find out whether this build of llama.cpp may use AMX, without dying of it.

Weights ──► usable ──► a process of its own computes with AMX ──► its exit status, remembered in the cache folder

ggml lays quantized weights out for AMX's tiles where the CPU has them, and is then more than twice as fast. But where
`_tile_loadconfig` tells the compiler of 8 of its 64 bytes (GCC bug 114098; Debian 12's GCC 12.2 has it), the first
product ends the process. No call says who compiled llama.cpp, so it is tried, once for each build.
"""

import logging
import subprocess
import sys

from embellama.gguf.header import Header
from embellama.llama import c_api
from embellama.machine.measurements import CachedMeasurement

logger = logging.getLogger("embellama.gguf.amx")

HAS_AMX = b"AMX_INT8 = 1" in c_api.llama_print_system_info()

# What ggml computes with AMX (ggml-cpu/amx/common.h, `qtype_has_amx_kernels`).
TYPES = {"q4_0", "q4_1", "q8_0", "q4_K", "q5_K", "q6_K", "iq4_xs"}

TRIAL = "import sys; from embellama.gguf import amx; amx.trial(sys.argv[1])"

# Loading takes most of a trial; a model that takes longer is loaded without AMX.
TRIAL_S = 120.0

_on_trial = False


def usable(header: Header) -> bool:
    """Tell whether weights may be laid out for AMX; True also where that makes no difference."""
    if _on_trial or not HAS_AMX or not TYPES.intersection(header.tensors.values()):
        return True
    verdict = CachedMeasurement("amx")
    known = verdict.read()
    if known is not None:
        return known == "usable"
    works = _try(header.path)
    logger.info("AMX %s in this build of llama.cpp", "works" if works else "does not work, and is left alone,")
    verdict.write("usable" if works else "not usable")
    return works


def trial(path: str) -> None:
    """Compute with AMX, in a process that may die of it."""
    global _on_trial
    _on_trial = True
    import numpy as np

    from embellama.batch import Batch
    from embellama.config import EngineConfig
    from embellama.model import EmbeddingModel

    model = EmbeddingModel(EngineConfig(model_path=path, pooling="none", n_ctx=32))
    model.encode(Batch.join([np.arange(16, dtype=np.int32)], [True]))


def _try(path: str) -> bool:
    command = [sys.executable, "-c", TRIAL, path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
