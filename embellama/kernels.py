"""Load our kernels (`native/`) into llama.cpp, where they were built and fit it.

libembellama_compute.so ── library() ──► Library ──► params of a model's load: a device, and a layout of its weights

llama.cpp stays as it is: it gives a model's graphs to the device it was loaded with, and the device gives back what it
has no kernels for. Nothing is registered, so models loaded without it are computed by ggml alone.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embellama.llama import ggml, version

logger = logging.getLogger("embellama.kernels")

PATH = Path(__file__).with_name("libembellama_compute.so")

# The weights that are packed: matrices of layers that are multiplied, and never read otherwise.
LAYERS = r"^(enc\.)?blk\.[0-9]+\.(attn_(q|k|v|qkv|output)|ffn_(up|down|gate))\.weight$"

# Instruction sets that multiply numbers of bfloat16, and pack all weights as such.
BF16 = {"amx", "avx512_bf16"}

# ggml's libraries that ours calls.
_GGML = ("libggml", "libggml-base", "libggml-cpu")


class KernelsUnusable(Exception):
    """Our kernels cannot be used here; the message says why."""


class Counts(ctypes.Structure):
    """How many operations our kernels have computed in this process, by kind, and how many they gave back to ggml."""

    _fields_ = [(name, ctypes.c_int64) for name in ("products", "attentions", "norms", "gates", "given_back")]


class _Override(ctypes.Structure):
    """llama.cpp's llama_model_tensor_buft_override: which weights lie in which type of memory."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


class Library:
    """The loaded library.

    Attributes:
        instruction_sets: Those that this CPU can compute with, fastest first.
    """

    def __init__(self, path: Path):
        """Load the library at `path`, and check that it fits the ggml that is loaded.

        Raises:
            KernelsUnusable: It was not built, cannot be loaded, is for another ggml, or has nothing for this CPU.
        """
        if not path.exists():
            raise KernelsUnusable("they were not built (scripts/setup builds them)")
        if sys.platform != "linux":
            raise KernelsUnusable(f"there are none for {sys.platform}")
        ggml_version = ggml("ggml_version", ctypes.c_char_p).decode()
        try:
            for name in _GGML:
                # It finds them by these names where they are loaded; no others may be loaded for it.
                ctypes.CDLL(f"{name}.so.{ggml_version.partition('.')[0]}", mode=os.RTLD_NOLOAD)
            self._library = ctypes.CDLL(str(path))
            built_for = self._call("built_for", ctypes.c_char_p).decode()
        except (OSError, AttributeError) as error:  # an AttributeError names a function that an older library lacks
            raise KernelsUnusable(f"they cannot be loaded: {error}") from None
        loaded = f"llama-cpp-python {version} with ggml {ggml_version}"
        if built_for != loaded:
            raise KernelsUnusable(f"they were built for {built_for}, and {loaded} is loaded (run scripts/setup)")
        self.instruction_sets: list[str] = self._call("instruction_sets", ctypes.c_char_p).decode().split()
        if not self.instruction_sets:
            raise KernelsUnusable("there are none for this CPU")

    def counts(self) -> Counts:
        """Count the operations computed since the process began."""
        counts = Counts()
        self._call("count", None, ctypes.byref(counts))
        return counts

    @contextlib.contextmanager
    def loading(self, params: Any, instruction_set: str, files: Iterable[str], memory: int | None) -> Iterator[None]:
        """Have a model loaded inside this context, with `params` (llama_model_params), computed by our kernels.

        Args:
            files: The files that the model is loaded from.
            memory: File descriptor of `SharedWeights`; None keeps the packed weights to this process.
        """
        name = instruction_set.encode()
        device = self._call("device", ctypes.c_void_p, name)
        devices = (ctypes.c_void_p * 2)(device, None)
        weights = self._call("weights", ctypes.c_void_p, name)
        overrides = (_Override * 2)(_Override(LAYERS.encode(), weights), _Override(None, None))
        params.devices = ctypes.addressof(devices)
        params.tensor_buft_overrides = ctypes.addressof(overrides)
        if memory is None:
            yield
            return
        self._call("share", None, memory, ctypes.c_uint64(_key_of(files, instruction_set)))
        try:
            yield
        finally:
            self._call("share", None, -1, ctypes.c_uint64(0))

    def _call(self, function: str, result: Any, *arguments: Any) -> Any:
        call = self._library[f"embellama_compute_{function}"]
        call.restype = result
        return call(*arguments)


@functools.cache
def _loaded() -> Library | KernelsUnusable:
    try:
        return Library(PATH)
    except KernelsUnusable as error:
        logger.info("llama.cpp computes without our kernels: %s", error)
        return error


def library() -> Library:
    """Return the library, loaded when first asked for; raise `KernelsUnusable` where it cannot be used."""
    found = _loaded()
    if isinstance(found, KernelsUnusable):
        raise found
    return found


class SharedWeights:
    """Memory of this process in which worker processes share the weights that our kernels pack.

    The first worker fills it, and one that is killed meanwhile leaves that to the next; if one is stopped, the others
    pack for themselves after a minute. So they do when the model's files have changed. It is freed with this object and
    the last worker that uses it, however they end.

    Attributes:
        path: Where processes of the same user open it; "" where there is no such memory.
    """

    def __init__(self) -> None:
        self.path = ""
        with contextlib.suppress(AttributeError, OSError):  # Linux has it
            memory = os.memfd_create("embellama-weights")
            self.path = f"/proc/{os.getpid()}/fd/{memory}"
            weakref.finalize(self, os.close, memory)


def _key_of(files: Iterable[str], instruction_set: str) -> int:
    """Return a number that differs for weights packed otherwise, and whenever a file was changed or replaced."""
    stats = [os.stat(file) for file in sorted(files)]
    facts = [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
    return int.from_bytes(hashlib.sha256(repr((instruction_set, facts)).encode()).digest()[:8])
