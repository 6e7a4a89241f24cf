"""`RowKeys`: the keys that a model's rows are kept under.

content of the weights' files, pooling, normalization ──► RowKeys ── kind of row, caller, token ids ──► SHA-256

A key says all that a row depends on and nothing else. Prompts and truncation are in the token ids; dimensions and
dtypes are made of the row afterwards; what computes (`compute`, threads, batches) changes only its last digits.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embellama.backend import Caller
from embellama.batch import RowKind, Tokens
from embellama.config import EngineConfig
from embellama.errors import ModelLoadError
from embellama.gguf.header import files_of
from embellama.gguf.weights import Weights
from embellama.machine.measurements import CachedMeasurement

if TYPE_CHECKING:
    from hashlib import _Hash

# Part of every key: a change of what keys or entries mean makes all old ones unknown.
VERSION = b"embellama rows 1"

# A file of fewer bytes is read again whenever it is loaded, which takes as long as finding what was kept of it.
SMALL_FILE = 32 * 1024 * 1024


class RowKeys:
    """Makes the keys of one model's rows."""

    def __init__(self, *parts: bytes):
        """Prepare for a model, given all that tells its rows from those of others."""
        self._model = hashlib.sha256()
        for part in (VERSION, *parts):
            _add(self._model, part)
        self._shared = {kind: self._prefix(kind, b"shared") for kind in RowKind}

    @classmethod
    def of_model(cls, config: EngineConfig, weights: Weights, content: bytes) -> "RowKeys":
        """Prepare for a model with the settings of `config`, whose files' content has the hash `content`."""
        # How long the context is changes a row only where the file has other rotations for long contexts (LongRoPE).
        n_ctx = config.n_ctx if "rope_factors_long.weight" in weights.header.tensors else 0
        return cls(content, weights.pooling.encode(), config.normalization.encode(), b"%d" % n_ctx)

    def of(self, tokens: Sequence[Tokens], kind: RowKind, caller: Caller) -> list[bytes]:
        """Return the key of each text's rows; a caller who does not share has keys of its own."""
        own = b"of " + caller.name.encode("utf-8", "surrogatepass")
        prefix = self._shared[kind] if caller.shares_cache else self._prefix(kind, own)
        keys = []
        for text in tokens:
            key = prefix.copy()
            _add(key, text.tobytes())
            keys.append(key.digest())
        return keys

    def _prefix(self, kind: RowKind, owner: bytes) -> "_Hash":
        prefix = self._model.copy()
        _add(prefix, b"%d" % kind)
        _add(prefix, owner)
        return prefix


def _add(key: "_Hash", part: bytes) -> None:
    """Add a part behind its length, so that parts cannot run into each other."""
    key.update(len(part).to_bytes(8, "little") + part)


def weights_hash(path: str) -> bytes:
    """Return a hash of the content of all files of the model at `path`; raise `ModelLoadError` if one is not there."""
    whole = hashlib.sha256()
    for file in files_of(path):
        try:
            whole.update(_file_hash(file).encode())
        except OSError as error:
            raise ModelLoadError(file, error.strerror or str(error)) from None
    return whole.digest()


def _file_hash(path: str) -> str:
    """Hash a file; of a large one the result is kept, until the file is changed or replaced."""
    with open(path, "rb") as file:
        identity = _identity(file.fileno())
        kept = CachedMeasurement("sha256", *identity) if os.fstat(file.fileno()).st_size >= SMALL_FILE else None
        if kept and (known := kept.read()):
            return known
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if kept and identity == _identity(file.fileno()):  # nobody wrote into it meanwhile
            kept.write(found)
        return found


def _identity(descriptor: int) -> tuple[int, ...]:
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
