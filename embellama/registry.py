"""Load the models of one engine, unload them to make room, load them again.

config ──► ModelRegistry.load ──► LoadedModel: weights, jobs, and a back end that computes them

One model is loaded at a time, and those that make room for it are closed before. Meanwhile all others can be used,
unloaded and asked about.
"""

import itertools
import logging
import os
import threading
from concurrent.futures import Future
from typing import NamedTuple

import msgspec

from embellama.backend import Backend
from embellama.batch import Rows
from embellama.cache.backend import keeps_rows, with_cache
from embellama.cache.futures import ThreadFutures
from embellama.cache.key import weights_hash
from embellama.config import EngineConfig
from embellama.errors import ConfigError, ModelError, ModelLoadError, ModelNotFound, Unavailable
from embellama.gguf.compute import memory_bytes, resolved
from embellama.gguf.header import Header, files_of
from embellama.gguf.loading import load_weights
from embellama.info import ModelInfo
from embellama.jobs import Jobs
from embellama.pool import Pool
from embellama.text.prompt_versions import PromptVersions
from embellama.tuning import tuned

logger = logging.getLogger("embellama.registry")


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
        stamp = _stamp(config)
        weights = load_weights(config)
        content = weights_hash(config.model_path) if keeps_rows(config) else b""
        if content and stamp != _stamp(config):  # rows would be kept as those of the new file
            raise ModelLoadError(config.model_path, "it was replaced while it was being loaded")
        self.config = tuned(config, weights)
        self.jobs = Jobs(self.config, weights)
        self.info = ModelInfo.of(self.config, self.jobs, weights)
        pool = Pool(self.config, weights)
        try:
            self.backend: Backend[Future[Rows]] = with_cache(pool, self.config, weights, content, ThreadFutures())
        except BaseException:
            pool.close()
            raise

    def close(self) -> None:
        """Finish its open requests, then free it."""
        self.backend.close()


class ModelRegistry:
    """Models by name, for use from any thread."""

    def __init__(self, max_model_bytes: int | None = None):
        """Make an empty registry; raise `ConfigError` if `max_model_bytes` is no number of bytes."""
        self._loading = threading.Lock()  # held while a model is loaded; taken before the other
        self._lock = threading.Lock()  # guards everything below; never held for long
        self._entries: dict[str, _Entry] = {}
        self._clock = itertools.count(1)
        self._closed = False
        self._prompt_versions = PromptVersions()  # changed while loading is locked
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
        with self._loading:
            with self._lock:
                if self._closed:
                    raise Unavailable("the engine is closed")
                if config.model_name in self._entries:
                    raise ConfigError(f"model_name is {config.model_name!r}: a model of that name is loaded already")
            self._load(_Entry(config))

    def unload(self, name: str) -> None:
        """Finish a model's open requests, then free and forget it."""
        with self._lock:
            gone = self._entry(name)
            del self._entries[gone.config.model_name]
            if self._default == gone.config.model_name:
                self._default = None
            model = gone.take_out()
        if model:
            model.close()

    def reload(self, name: str) -> None:
        """Load a model's file again; the old one serves until the new one is there, and stays if there is none.

        Where there is no room for both, the old one is unloaded first.
        """
        with self._loading:
            self._load(self._entry(name))

    def get(self, name: str | None) -> LoadedModel:
        """Return a model, loaded again if it was unloaded to make room.

        Raises:
            ModelNotFound: No model of that name is known.
            Unavailable: The engine is closed.
            ModelError: Its file was truncated while it was loaded.
        """
        if model := self._entry(name).usable():
            return model
        with self._loading:
            entry = self._entry(name)  # it may have gone meanwhile
            return entry.model or self._load(entry)

    def close(self) -> None:
        """Finish all open requests, then free every model. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            models = [entry.take_out() for entry in self._entries.values()]
            self._entries.clear()
        for model in models:
            if model:
                model.close()

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
        """Load a model, or load it again, after unloading others if there is no room. Loading is locked."""
        name, is_new = entry.config.model_name, entry.loaded is None
        if self._max_model_bytes is not None:
            self._make_room(entry, self._max_model_bytes)
        loaded = _Loaded.of(entry.config)
        assert loaded.model
        try:
            self._prompt_versions.check(name, loaded.model.jobs.prompts)
        except ConfigError:
            loaded.model.close()
            raise
        self._prompt_versions.note(name, loaded.model.jobs.prompts)
        with self._lock:
            wanted = not self._closed and (is_new or self._entries.get(name) is entry)
            gone = entry.put(loaded) if wanted else loaded.model
            if wanted:
                self._entries[name] = entry
        if gone:
            gone.close()
        if not wanted:
            raise Unavailable("the engine is closed") if self._closed else ModelNotFound(name, self.names)
        return loaded.model

    def _make_room(self, entry: "_Entry", max_bytes: int) -> None:
        """Unload the models that were used longest ago; at last, if that is not enough, the one to be loaded again."""
        config = resolved(entry.config)
        n_bytes = memory_bytes(Header(config.model_path), config.compute)
        if n_bytes > max_bytes:
            raise ConfigError(
                f"max_model_bytes is {max_bytes}, but model {config.model_name!r} alone takes {n_bytes} bytes "
                f"(computed with {config.compute})"
            )
        with self._lock:
            there = [other for other in self._entries.values() if other.model]
            there.sort(key=lambda other: (other is entry, other.used_at))
            going = []
            while sum(other.info.memory_bytes for other in there) + n_bytes > max_bytes:
                going.append(there.pop(0))
            models = [(other.config.model_name, other.take_out()) for other in going]
        for name, model in models:
            if model:
                logger.info("unloading model %r to make room", name)
                model.close()


class _Loaded(NamedTuple):
    """A model as it was loaded last.

    model: The model; None once it was unloaded to make room.
    info: Its description.
    stamp: Of each of its files, values that differ whenever the file was changed or replaced.
    """

    model: LoadedModel | None
    info: ModelInfo
    stamp: list[tuple[int, ...]]

    @classmethod
    def of(cls, config: EngineConfig) -> "_Loaded":
        """Load a model."""
        stamp = _stamp(config)
        model = LoadedModel(config)
        return cls(model, model.info, stamp)


class _Entry:
    """One model that the registry knows: loaded, or unloaded to make room.

    Attributes:
        loaded: What was loaded last; None before it was put here. Replaced as a whole, as it is read without a lock.
    """

    def __init__(self, config: EngineConfig):
        self.config = config
        self.used_at = 0  # on the registry's clock
        self.loaded: _Loaded | None = None
        self._warned = False
        self._warning_lock = threading.Lock()

    @property
    def model(self) -> LoadedModel | None:
        return self.loaded and self.loaded.model

    @property
    def info(self) -> ModelInfo:
        assert self.loaded
        changed = _stamp(self.config) != self.loaded.stamp
        return msgspec.structs.replace(self.loaded.info, loaded=self.model is not None, changed=changed)

    def put(self, loaded: _Loaded) -> LoadedModel | None:
        """Put a model here; return the one before, to be closed."""
        before = self.model
        self.loaded, self._warned = loaded, False
        return before

    def take_out(self) -> LoadedModel | None:
        """Let the model go, to be closed."""
        model = self.model
        if self.loaded:
            self.loaded = self.loaded._replace(model=None)
        return model

    def usable(self) -> LoadedModel | None:
        """Return the model, if it is in memory; log a warning, once, if its files are no longer those loaded.

        Raises:
            ModelError: A file was truncated, so that reading the weights would end the process (SIGBUS).
        """
        loaded = self.loaded
        assert loaded
        stamp = _stamp(self.config)
        if stamp == loaded.stamp:
            return loaded.model
        name, files = self.config.model_name, zip(files_of(self.config.model_path), stamp, loaded.stamp, strict=True)
        changed = [(path, new, old) for path, new, old in files if new != old]
        with self._warning_lock:
            warned, self._warned = self._warned, True
        if not warned:
            how = "reload_model loads the new file" if loaded.model else "the new file is loaded now"
            logger.warning("%s has changed since model %r was loaded from it; %s", changed[0][0], name, how)
        for path, new, old in changed:
            if loaded.model and new[:2] == old[:2] and new[2] < old[2]:
                raise ModelError(
                    f"{path} was cut while model {name!r} was loaded from it; mend it and call reload_model"
                )
        return loaded.model


def _stamp(config: EngineConfig) -> list[tuple[int, ...]]:
    return [_file_stamp(path) for path in files_of(config.model_path)]


def _file_stamp(path: str) -> tuple[int, ...]:
    """Return values that differ whenever the file was changed or replaced; () when there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _with_absolute_paths(config: EngineConfig) -> EngineConfig:
    """Make the paths in `config` absolute: the files may be loaded again when the process is in another directory."""
    prompts_file = config.prompts_file and os.path.abspath(config.prompts_file)
    return msgspec.structs.replace(config, model_path=os.path.abspath(config.model_path), prompts_file=prompts_file)
