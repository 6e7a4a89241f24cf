"""Models in shared storage: fetched once for each machine, whatever its processes.

a URI ── its size and time, asked for each time ──► the cache folder has it? ──► the path
                                                        │ no
                 one process holds the lock, copies ◄───╯ ──► its size, as told ──► in its place, whole

A path without a scheme is of this machine and comes back as it is.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from embellama.bulk.extra import extra
from embellama.cache.key import weights_hash
from embellama.errors import ConfigError, ModelLoadError
from embellama.gguf.header import files_of

# Copied at a time. Object stores answer slowly and send fast.
BLOCK_BYTES = 8 * 1024 * 1024


def fetched(uri: str) -> str:
    """Return the path of a file, and of the other parts of a model in several, once all are on this machine.

    Args:
        uri: What `pyarrow.fs.FileSystem.from_uri` reads, such as ``s3://bucket/model.gguf``, or a path.

    Raises:
        ConfigError: The URI cannot be read, or a package for it is missing.
        ModelLoadError: There is no such file, or it could not be copied whole.
    """
    if "://" not in uri:
        return uri
    filesystems = extra("pyarrow.fs", "models in shared storage")
    try:
        storage, first = filesystems.FileSystem.from_uri(uri)
        files = storage.get_file_info(files_of(first))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{_shown(uri)} cannot be read: {error}") from None
    for file in files:
        if not file.is_file:
            raise ModelLoadError(_shown(uri), f"there is no file {file.path}")
    identity = repr([(uri, file.path, file.size, file.mtime_ns) for file in files])
    folder = _models_folder() / hashlib.sha256(identity.encode()).hexdigest()[:16]
    with alone(folder.with_suffix(".lock")):
        for file in files:
            _copy(storage, file, folder / PurePosixPath(file.path).name, uri)
    return str(folder / PurePosixPath(first).name)


def check_weights(path: str, sha256: str) -> None:
    """Raise `ModelLoadError` unless the weights at a path are those of a hash (`embellama.cache.key.weights_hash`)."""
    if sha256 and (found := weights_hash(path).hex()) != sha256.lower():
        raise ModelLoadError(path, f"its weights_sha256 is {found}, and {sha256.lower()} was asked for")


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock of this machine; it is free again when this process ends, however that is."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def loading_lock(path: str) -> Path:
    """Return the lock for loading a model for the first time: what one process measures then, the others know."""
    return _models_folder() / f"load-{hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]}.lock"


def _copy(storage: Any, file: Any, path: Path, uri: str) -> None:
    """Copy a file, unless it is there."""
    if path.exists() and path.stat().st_size == file.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with storage.open_input_stream(file.path) as source, open(partial, "wb") as target:
            shutil.copyfileobj(source, target, BLOCK_BYTES)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise ModelLoadError(_shown(uri), f"it cannot be copied to {path.parent}: {error}") from None
    if (n_bytes := partial.stat().st_size) != file.size:
        raise ModelLoadError(_shown(uri), f"{n_bytes} bytes of {file.path} came, and it has {file.size}")
    partial.replace(path)


def _models_folder() -> Path:
    import platformdirs  # here, because `import embellama` need not wait for it

    return platformdirs.user_cache_path("embellama", appauthor=False) / "models"


def _shown(uri: str) -> str:
    """Return a URI without a key or password that it may have."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
