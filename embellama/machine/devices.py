"""List the devices that this build of llama.cpp can compute on.

ggml's list ──► devices() ──► `embellama devices`
"""

import ctypes
from typing import Literal

import msgspec

from embellama.llama import c_api, ggml

_KINDS: list[Literal["cpu", "gpu", "igpu", "accelerator"]] = ["cpu", "gpu", "igpu", "accelerator"]

# For the error of a CPU build that is asked for a GPU, and for `embellama devices`.
GPU_BUILD = (
    "to build llama-cpp-python for NVIDIA's: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir "
    "--no-binary llama-cpp-python llama-cpp-python; for Apple's with -DGGML_METAL=on, for others with -DGGML_VULKAN=on"
)


class Device(msgspec.Struct, frozen=True):
    """One device that llama.cpp can compute on.

    Attributes:
        name: llama.cpp's name for it: ``CPU``, ``CUDA0``, …
        description: The device's own name, such as the CPU's model.
        kind: ``cpu``, ``gpu``, ``igpu`` (shares the CPU's memory) or ``accelerator``.
        free_bytes: Memory that is free now.
        total_bytes: Memory it has.
    """

    name: str
    description: str
    kind: Literal["cpu", "gpu", "igpu", "accelerator"]
    free_bytes: int
    total_bytes: int


def devices() -> list[Device]:
    """List the devices that llama.cpp can compute on; the CPU is among them."""
    return [_device(i) for i in range(ggml("ggml_backend_dev_count", ctypes.c_size_t))]


def gpu_build() -> bool:
    """Tell whether this llama-cpp-python was built to use a GPU."""
    return bool(c_api.llama_supports_gpu_offload())


def _device(i: int) -> Device:
    device = ctypes.c_void_p(ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(i)))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml("ggml_backend_dev_memory", None, device, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=ggml("ggml_backend_dev_name", ctypes.c_char_p, device).decode(),
        description=ggml("ggml_backend_dev_description", ctypes.c_char_p, device).decode().strip(),
        kind=_KINDS[min(ggml("ggml_backend_dev_type", ctypes.c_int, device), len(_KINDS) - 1)],
        free_bytes=free.value,
        total_bytes=total.value,
    )
