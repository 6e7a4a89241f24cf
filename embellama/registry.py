"""Load the models of one engine, unload them to make room, load them again.

config ──► ModelRegistry.load ──► LoadedModel: weights, jobs, and a back end that computes them
"""

import itertools
import logging
import os
import threading
from concurrent.futures import Future

import msgspec

from embellama.backend import Backend
from embellama.batch import Rows
from embellama.config import EngineConfig
from embellama.errors import ConfigError, ModelError, ModelNotFound, Unavailable
from embellama.gguf.compute import resolved
from embellama.gguf.header import Header
from embellama.gguf.loading import load_weights
from embellama.info import ModelInfo
from embellama.jobs import Jobs
from embellama.pool import Pool
from embellama.tuning import tuned

logger = logging.getLogger("embellama.engine")


class LoadedModel:
    """A model in memory.

    Attributes:
        config: Its settings, with `compute` and `max_batch_tokens` filled in.
        jobs: Makes jobs for it.
        info: Its description.
        backend: Computes the rows of its jobs.
    """

    def __init__(self, config: EngineConfig):
        """Load the model of `config`, already checked, and start its threads."""
        config = resolved(config)
        weights = load_weights(config)
        self.config = tuned(config, weights)
        self.jobs = Jobs(self.config, weights)
        self.info = ModelInfo.of(self.config, self.jobs, weights)
        self._pool = Pool(self.config, weights)
        self.backend: Backend[Future[Rows]] = self._pool

    def close(self) -> None:
        """Finish its open requests, then free it."""
        self._pool.close()


class ModelRegistry:
    """Models by name, for use from any thread."""

    def __init__(self, max_model_bytes: int | None = None):
        """Make an empty registry; raise `ConfigError` if `max_model_bytes` is no number of bytes."""
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()  # held while models come and go, not while they are used
        self._clock = itertools.count(1)
        self._closed = False
        if max_model_bytes is not None and not (isinstance(max_model_bytes, int) and max_model_bytes > 0):
            raise ConfigError(f"max_model_bytes is {max_model_bytes!r}; it must be a number of bytes, or None")
        self._max_model_bytes = max_model_bytes
        self._default: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the models, in the order they were loaded; also of those that were unloaded to make room."""
        return list(self._entries)

    @property
    def default(self) -> str | None:
        """Name of the default model: the one last set here, or the first that was loaded."""
        return self._default or next(iter(self.names), None)

    @default.setter
    def default(self, name: str) -> None:
        with self._lock:
            self._entry(name, used=False)
            self._default = name

    def info(self, name: str | None) -> ModelInfo:
        """Describe a model."""
        return self._entry(name, used=False).info

    def load(self, config: EngineConfig) -> None:
        """Load one more model; `EmbeddingEngine.load_model` says what is raised."""
        config = _with_absolute_paths(config.checked())
        with self._lock:
            if self._closed:
                raise Unavailable("the engine is closed")
            if config.model_name in self._entries:
                raise ConfigError(f"model_name is {config.model_name!r}: a model of that name is loaded already")
            entry = _Entry(config)
            self._load(entry)
            self._entries[config.model_name] = entry

    def unload(self, name: str) -> None:
        """Finish a model's open requests, then free and forget it."""
        with self._lock:
            gone = self._entry(name)
            del self._entries[gone.config.model_name]
            if self._default == gone.config.model_name:
                self._default = None
        if gone.model:
            gone.model.close()

    def reload(self, name: str) -> None:
        """Load a model's file again; the old one serves until the new one is there, and stays if there is none."""
        with self._lock:
            entry = self._entry(name)
            old = entry.model
            self._load(entry)
        if old:
            old.close()

    def get(self, name: str | None) -> LoadedModel:
        """Return a model, loaded again if it was unloaded to make room.

        Raises:
            ModelNotFound: No model of that name is known.
            Unavailable: The engine is closed.
            ModelError: Its file was truncated while it was loaded.
        """
        entry = self._entry(name)
        model = entry.model
        entry.notice_change()
        if model is None:
            with self._lock:
                entry = self._entry(name)  # it may have gone meanwhile
                model = entry.model or self._load(entry)
        return model

    def close(self) -> None:
        """Finish all open requests, then free every model. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            if entry.model:
                entry.model.close()

    def _entry(self, name: str | None, *, used: bool = True) -> "_Entry":
        known = self.default if name is None else name
        entry = self._entries.get(known) if known is not None else None
        if entry is None:
            if self._closed:
                raise Unavailable("the engine is closed")
            raise ModelNotFound(known or "", self.names)
        if used:  # to ask about a model does not keep it loaded
            entry.used_at = next(self._clock)
        return entry

    def _load(self, entry: "_Entry") -> LoadedModel:
        """Load a model, or load it again, after unloading others if there is no room. The lock is held."""
        if self._max_model_bytes is not None:
            n_bytes = Header(entry.config.model_path).n_bytes
            if n_bytes > self._max_model_bytes:
                raise ConfigError(
                    f"max_model_bytes is {self._max_model_bytes}, but model {entry.config.model_name!r} alone has "
                    f"{n_bytes} bytes"
                )
            others = [other for other in self._entries.values() if other.model and other is not entry]
            others.sort(key=lambda other: other.used_at)
            while sum(other.info.n_bytes for other in others) + n_bytes > self._max_model_bytes:
                others.pop(0).unload()
        return entry.load()


class _Entry:
    """One model that the registry knows: loaded, or unloaded to make room."""

    def __init__(self, config: EngineConfig):
        self.config = config
        self.model: LoadedModel | None = None
        self.used_at = 0  # on the registry's clock
        self._info: ModelInfo | None = None
        self._stamp: tuple[int, ...] = ()
        self._warned = False
        self._warning_lock = threading.Lock()

    @property
    def info(self) -> ModelInfo:
        assert self._info is not None
        return msgspec.structs.replace(self._info, loaded=self.model is not None, changed=self._changed())

    def load(self) -> LoadedModel:
        stamp = self._file_stamp()
        self.model = model = LoadedModel(self.config)
        self._info = model.info
        self._stamp, self._warned = stamp, False
        return model

    def unload(self) -> None:
        model, self.model = self.model, None
        if model:
            logger.info("unloading model %r to make room", self.config.model_name)
            model.close()

    def notice_change(self) -> None:
        """Log a warning, once, if the file is no longer the one that was loaded.

        Raises:
            ModelError: The file was truncated, so that reading the weights would end the process (SIGBUS).
        """
        if not self._changed():
            return
        path, name = self.config.model_path, self.config.model_name
        with self._warning_lock:
            warned, self._warned = self._warned, True
        if not warned:
            how = "reload_model loads the new file" if self.model else "the new file is loaded now"
            logger.warning("%s has changed since model %r was loaded from it; %s", path, name, how)
        file = self._file_stamp()
        if self.model and file[:2] == self._stamp[:2] and file[2] < self._stamp[2]:
            raise ModelError(f"{path} was cut while model {name!r} was loaded from it; mend it and call reload_model")

    def _changed(self) -> bool:
        return self._file_stamp() != self._stamp

    def _file_stamp(self) -> tuple[int, ...]:
        """Return values that differ whenever the file was changed or replaced; () when there is no file."""
        try:
            stat = os.stat(self.config.model_path)
        except OSError:
            return ()
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _with_absolute_paths(config: EngineConfig) -> EngineConfig:
    """Make the paths in `config` absolute: the files may be loaded again when the process is in another directory."""
    prompts_file = config.prompts_file and os.path.abspath(config.prompts_file)
    return msgspec.structs.replace(config, model_path=os.path.abspath(config.model_path), prompts_file=prompts_file)
