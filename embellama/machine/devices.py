"""List the devices that models can be computed on here: those of llama.cpp, and our kernels on the CPU.

ggml's list, kernels.library() ──► devices() ──► `embellama devices`
"""

import ctypes
from typing import Literal

import msgspec

from embellama.kernels import KernelsUnusable, library
from embellama.llama import c_api, ggml

Kind = Literal["cpu", "gpu", "igpu", "accelerator", "kernels"]

_KINDS: list[Kind] = ["cpu", "gpu", "igpu", "accelerator"]

# For the error of a CPU build that is asked for a GPU, and for `embellama devices`.
GPU_BUILD = (
    "to build llama-cpp-python for NVIDIA's: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir "
    "--no-binary llama-cpp-python llama-cpp-python; for Apple's with -DGGML_METAL=on, for others with -DGGML_VULKAN=on"
)


class Device(msgspec.Struct, frozen=True):
    """One device that models can be computed on.

    Attributes:
        name: llama.cpp's name for it: ``CPU``, ``CUDA0``, …; or the instruction set of kernels.
        description: The device's own name, such as the CPU's model.
        kind: ``cpu``, ``gpu``, ``igpu`` (shares the CPU's memory), ``accelerator`` or ``kernels`` (ours, on the CPU).
        free_bytes: Memory that is free now.
        total_bytes: Memory it has.
    """

    name: str
    description: str
    kind: Kind
    free_bytes: int
    total_bytes: int


def devices() -> list[Device]:
    """List llama.cpp's devices, the CPU among them, and our kernels, those for the fastest instruction set first."""
    found = [_device(i) for i in range(ggml("ggml_backend_dev_count", ctypes.c_size_t))]
    try:
        instruction_sets = library().instruction_sets
    except KernelsUnusable:
        return found
    [cpu] = [device for device in found if device.kind == "cpu"]
    described = msgspec.structs.replace(cpu, description="our kernels on the CPU", kind="kernels")
    return [*found, *(msgspec.structs.replace(described, name=name) for name in instruction_sets)]


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
