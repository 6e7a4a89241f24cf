"""Find out whether AMX crashes this build of llama.cpp, by trying it in a process of its own.

load_weights ──► may_repack ──► `python -m embellama.amx_trial FILE` ──► its exit status, kept in the cache folder

ggml lays quantized weights out for AMX's tiles where the CPU has them, and is then more than twice as fast. But where
`_tile_loadconfig` tells the compiler of 8 of its 64 bytes (GCC bug 114098; Debian 12's GCC 12.2 has it), the first
product ends the process; builds by scripts/setup are well (`scripts/amx_tile_config.h`). No call says who compiled
llama.cpp, so it is tried, once for each build.
"""

import logging
import subprocess
import sys

from embellama.gguf.header import Header
from embellama.llama import c_api
from embellama.machine.isolated import python_environment
from embellama.machine.measurements import CachedMeasurement

logger = logging.getLogger("embellama.gguf.amx")

HAS_AMX = b"AMX_INT8 = 1" in c_api.llama_print_system_info()

# What ggml computes with AMX (ggml-cpu/amx/common.h, `qtype_has_amx_kernels`).
TYPES = {"q4_0", "q4_1", "q8_0", "q4_K", "q5_K", "q6_K", "iq4_xs"}

# The module of the trial. It is named, not imported: it computes with a model, and so imports this module.
TRIAL = "embellama.amx_trial"

# As measured on a Xeon, 768 short texts/s against 295.
GAIN = "Q8_0 would be 2.6 times as fast in a build by scripts/setup, or with clang or GCC 13.3 or later"

# Loading takes most of a trial; a model that takes longer is loaded without AMX.
TRIAL_S = 120.0


def may_repack(path: str) -> bool:
    """Tell whether llama.cpp may lay the weights of a file out anew for this CPU without crashing on its AMX.

    True also for a CPU without AMX, and for weights that ggml computes without it.

    Raises:
        ModelLoadError: The file is missing, unreadable or not GGUF.
    """
    if not HAS_AMX or not TYPES.intersection(Header(path).tensors.values()):
        return True
    verdict = CachedMeasurement("amx")
    known = verdict.read()
    if known is not None:
        return known == "usable"
    works = _try(path)
    if works is None:  # this file tells nothing about AMX; the next one may
        logger.info("AMX could not be tried with %s, and is left alone for it", path)
        return False
    if works:
        logger.info("AMX works in this build of llama.cpp")
    else:
        logger.warning("AMX does not work in this build of llama.cpp, and is left alone: %s", GAIN)
    verdict.write("usable" if works else "not usable")
    return works


def _try(path: str) -> bool | None:
    """Return whether computing with AMX works, or None if the trial ended before it could tell."""
    command = [sys.executable, "-m", TRIAL, path]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_S, env=python_environment()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode > 0:  # an error was raised, as for a damaged file; a signal is a status below 0
        return None
    return done.returncode == 0
