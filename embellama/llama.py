"""Load llama.cpp's C API once, and send its log to Python's logging.

Every module that calls llama.cpp takes `c_api` from here, so that the library is loaded with the settings below. Names
are llama.cpp's own (`llama.h`); functions of ggml's (`gguf.h`, `ggml-backend.h`) that llama-cpp-python has no name for
are called through `ggml`. Of all modules only `model.py` computes: it alone calls `llama_encode` and `llama_decode`.
"""

import collections
import ctypes
import logging
import os
from typing import Any

# GNU OpenMP's threads spin at the end of each layer, for about 100 ms of patience by default: on a machine that has
# other work, every layer then waits for a thread that spins in another's place. At 10,000 a lone batch takes as long
# as by default, and among two busy programs its p95 is 20 ms, not 90 to 2,000; at 0 a lone batch takes three times as
# long. LLVM's OpenMP, which comes with clang, has 200 ms of patience; at 1 ms a server's lone text takes 4% longer, and
# with 4 clients 13% less. Both are read when the library loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("KMP_BLOCKTIME", "1")

from llama_cpp import __version__ as version
from llama_cpp import llama_cpp as c_api

logger = logging.getLogger("embellama.llama_cpp")

# enum ggml_log_level (ggml.h): NONE 0, DEBUG 1, INFO 2, WARN 3, ERROR 4, CONT 5 (goes on with the line before).
_ERROR, _CONT = 4, 5

# llama.cpp reports a failed load by a null pointer and says why only in its log.
_errors: collections.deque[str] = collections.deque(maxlen=8)


@c_api.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace").strip(" .\n")
    if not line or level == _CONT:
        return
    if level == _ERROR:
        _errors.append(line)
    # Its warnings are logged for debugging only: they are about files, not about what a user of this library did.
    logger.debug("%s", line)


# ggml's functions are found through llama.cpp's own library, and so in the copy of ggml that it computes with. A wheel
# has copies in place of links, and `llama_cpp._ggml` loads another one, whose devices are not llama.cpp's.
libggml = c_api._lib

__all__ = ["c_api", "ggml", "last_error", "libggml", "version"]

c_api.llama_log_set(_log, ctypes.c_void_p(0))
c_api.llama_backend_init()


def ggml(function: str, result: Any, *arguments: Any) -> Any:
    """Call a function of ggml's that llama-cpp-python has no name for; `result` is its C return type."""
    call = libggml[function]  # a new object each time, so that setting its restype changes no other call
    call.restype = result
    return call(*arguments)


def last_error() -> str:
    """Return what llama.cpp logged as errors since the last call, most telling first, or ""."""
    lines = [_errors.popleft() for _ in range(len(_errors))]
    return "; ".join(line.partition(": ")[2] or line for line in lines[:2])
