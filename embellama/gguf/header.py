"""Read the header of a GGUF file, its metadata and tensor list, without loading the model.

file ── Header ──► Weights, and `embellama inspect`

Read by ggml's own functions (`gguf.h`), which refuse a malformed file where loading it might end the process.
"""

import contextlib
import ctypes
import functools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embellama.errors import ModelLoadError
from embellama.llama import c_api, ggml, last_error, libggml

_GETTERS = {  # enum gguf_type (gguf.h); strings are 8, arrays 9
    0: ("gguf_get_val_u8", ctypes.c_uint8),
    1: ("gguf_get_val_i8", ctypes.c_int8),
    2: ("gguf_get_val_u16", ctypes.c_uint16),
    3: ("gguf_get_val_i16", ctypes.c_int16),
    4: ("gguf_get_val_u32", ctypes.c_uint32),
    5: ("gguf_get_val_i32", ctypes.c_int32),
    6: ("gguf_get_val_f32", ctypes.c_float),
    7: ("gguf_get_val_bool", ctypes.c_bool),
    10: ("gguf_get_val_u64", ctypes.c_uint64),
    11: ("gguf_get_val_i64", ctypes.c_int64),
    12: ("gguf_get_val_f64", ctypes.c_double),
}
_INT32, _STRING, _ARRAY = 5, 8, 9


class Header:
    """Metadata and tensor list of one GGUF file, or of a model in several, of which it is the first.

    Attributes:
        path: The file.
        values: Metadata by key: `str`, `int`, `float` or `bool`; of an array its length.
        arrays: Keys of the metadata that are arrays.
        tensors: Tensor names with their types, such as ``"bf16"``.
        n_values: Tensor names with how many numbers they hold.
        files: Tensor names with the file that has their numbers: of a model in several files, one of its parts.
        offsets: Tensor names with where their numbers begin, in bytes from the beginning of that file.
        n_bytes: Size of all tensors.
    """

    def __init__(self, path: str):
        """Read the header of `path`.

        Raises:
            ModelLoadError: The file is missing, unreadable, not GGUF, or cut off within its header; or it is a later
                part of a model in several files, or another part is missing.
        """
        self.path = path
        self.values: dict[str, Any] = {}
        self.arrays: set[str] = set()
        self.tensors: dict[str, str] = {}
        self.n_values: dict[str, int] = {}
        self.offsets: dict[str, int] = {}
        self.files: dict[str, str] = {}
        self.n_bytes = 0
        with _opened(path) as file:
            for i in map(ctypes.c_int64, range(ggml("gguf_get_n_kv", ctypes.c_int64, file))):
                key = _string("gguf_get_key", file, i)
                self.values[key] = _value(file, i)
                if ggml("gguf_get_kv_type", ctypes.c_int, file, i) == _ARRAY:
                    self.arrays.add(key)
            self._add_tensors(path, file)
        for part in self._other_parts():
            with _opened(part) as file:
                self._add_tensors(part, file)

    def _add_tensors(self, path: str, file: ctypes.c_void_p) -> None:
        first = ggml("gguf_get_data_offset", ctypes.c_size_t, file)
        for i in map(ctypes.c_int64, range(ggml("gguf_get_n_tensors", ctypes.c_int64, file))):
            name = _string("gguf_get_tensor_name", file, i)
            type = ggml("gguf_get_tensor_type", ctypes.c_int, file, i)
            n_bytes = ggml("gguf_get_tensor_size", ctypes.c_size_t, file, i)
            n_blocks = n_bytes // ggml("ggml_type_size", ctypes.c_size_t, type)
            self.tensors[name] = _string("ggml_type_name", type)
            self.n_values[name] = n_blocks * ggml("ggml_blck_size", ctypes.c_int64, type)
            self.offsets[name] = first + ggml("gguf_get_tensor_offset", ctypes.c_size_t, file, i)
            self.files[name] = path
            self.n_bytes += n_bytes

    def _other_parts(self) -> list[str]:
        """Return the files that this one, the first of several, goes on in; raise `ModelLoadError` if it is not so."""
        n_parts, place = self.values.get("split.count", 0), self.values.get("split.no", 0)
        if not isinstance(n_parts, int) or n_parts < 2:
            return []
        prefix = _PART.sub("", self.path)
        parts = _parts(prefix, n_parts)
        if place:
            raise ModelLoadError(self.path, f"it is part {place + 1} of {n_parts}; give part 1, {parts[0]}")
        if self.path != parts[0]:
            ending = parts[0][len(prefix) :]
            raise ModelLoadError(self.path, f"it is part 1 of {n_parts}, whose name must end in {ending}")
        for number, part in enumerate(parts[1:], 2):
            if not Path(part).exists():
                raise ModelLoadError(self.path, f"part {number} of {n_parts} is missing: {part}")
        return parts[1:]

    # Read when asked for: going through a vocabulary takes longer than all the rest.
    @functools.cached_property
    def repeated_token(self) -> str | None:
        """A token that is in the vocabulary twice, or None."""
        with _opened(self.path) as file:
            return _repeated(file)

    @functools.cached_property
    def byte_tokens(self) -> bool:
        """Whether tokens of its vocabulary stand for single bytes."""
        with _opened(self.path) as file:
            return _has_byte_tokens(file)

    @property
    def architecture(self) -> str:
        """The model's architecture, as llama.cpp names it: ``"bert"``."""
        return str(self.values.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the architecture's own `key`, such as ``context_length``, or `default`."""
        return self.values.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int | None = None) -> int | None:
        """Return the architecture's own `key`, `default` if it is missing, or None if it is not one whole number."""
        value = self.get(key, default)
        own = f"{self.architecture}.{key}"
        return value if isinstance(value, int) and own not in self.arrays else None

    @property
    def quantization(self) -> str:
        """The type that most tensors of the layers (``blk.``) have, not counting ``"f32"`` if any has another."""
        types = [type for name, type in self.tensors.items() if name.startswith("blk.")]
        wide = [type for type in types if type != "f32"] or types
        return max(set(wide), key=wide.count, default="")


def files_of(path: str) -> list[str]:
    """List the files of a model by the name of its first, whether they are there or not."""
    found = _PART.search(path)
    return _parts(path[: found.start()], int(found[1])) if found else [path]


# The end of the name of a part, as llama.cpp's gguf-split has it.
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def _parts(prefix: str, n_parts: int) -> list[str]:
    return [f"{prefix}-{part:05}-of-{n_parts:05}.gguf" for part in range(1, n_parts + 1)]


class _InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[ctypes.c_void_p]:
    """Let ggml read a file's header."""
    _check_magic(Path(path))
    last_error()
    pointer = ggml("gguf_init_from_file", ctypes.c_void_p, os.fsencode(path), _InitParams(True, None))
    if not pointer:
        raise ModelLoadError(path, f"its header is damaged: {last_error() or 'ggml does not say how'}")
    file = ctypes.c_void_p(pointer)
    try:
        yield file
    finally:
        ggml("gguf_free", None, file)


def _value(file: ctypes.c_void_p, index: ctypes.c_int64) -> Any:
    type = ggml("gguf_get_kv_type", ctypes.c_int, file, index)
    if type == _STRING:
        return _string("gguf_get_val_str", file, index)
    if type == _ARRAY:
        return ggml("gguf_get_arr_n", ctypes.c_size_t, file, index)
    return ggml(_GETTERS[type][0], _GETTERS[type][1], file, index)


def _repeated(file: ctypes.c_void_p) -> str | None:
    index, n = _array(file, b"tokenizer.ggml.tokens", _STRING)
    get = libggml["gguf_get_arr_str"]  # not by `ggml`, which would take a second for a large vocabulary
    get.restype, get.argtypes = ctypes.c_char_p, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t)
    seen: set[bytes] = set()
    for i in range(n):
        text: bytes = get(file, index, i)
        if text and text in seen:  # llama.cpp names empty ones itself
            return text.decode("utf-8", "replace")
        seen.add(text)
    return None


def _has_byte_tokens(file: ctypes.c_void_p) -> bool:
    index, n = _array(file, b"tokenizer.ggml.token_type", _INT32)
    if not n:
        return False
    types = ggml("gguf_get_arr_data", ctypes.POINTER(ctypes.c_int32), file, index)
    return bool((np.ctypeslib.as_array(types, (n,)) == c_api.LLAMA_TOKEN_TYPE_BYTE).any())


def _array(file: ctypes.c_void_p, key: bytes, kind: int) -> tuple[ctypes.c_int64, int]:
    """Find an array and count its items, 0 if there is no such array of that kind of items."""
    index = ctypes.c_int64(ggml("gguf_find_key", ctypes.c_int64, file, key))
    if index.value < 0 or ggml("gguf_get_kv_type", ctypes.c_int, file, index) != _ARRAY:
        return index, 0
    if ggml("gguf_get_arr_type", ctypes.c_int, file, index) != kind:
        return index, 0
    return index, ggml("gguf_get_arr_n", ctypes.c_size_t, file, index)


def _string(function: str, *arguments: Any) -> str:
    return (ggml(function, ctypes.c_char_p, *arguments) or b"").decode("utf-8", "replace")


def _check_magic(path: Path) -> None:
    """Say what is wrong with `path` in words; llama.cpp's own are about offsets and pointers."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelLoadError(str(path), "it is not a file")  # opening a pipe would wait for its other end
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(str(path), error.strerror or str(error)) from None
    if magic != b"GGUF":
        raise ModelLoadError(str(path), f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
