"""Models that are served: loaded at the start; loaded, swapped and unloaded while the server runs.

a config ── load, check_memory ──► ServedModel ── its workers start, all are ready ──► ServerState.serve ──► requests
                                                                                          │
             its workers stop ◄── its last request is answered ◄── ServerState.leaving ◄──┘ the one it took the place of

SIGHUP ── reread_prompts ──► the same ServedModel with the prompts that its file has now ──► ServerState.serve
"""

import asyncio
import contextlib
import functools
import gc
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from embellama.advice.formats import faster_format
from embellama.cache.backend import with_cache
from embellama.cache.futures import LoopFutures
from embellama.cache.key import weights_hash
from embellama.errors import ConfigError, ModelLoadError, Unavailable
from embellama.gguf.compute import resolved
from embellama.gguf.header import Header
from embellama.gguf.weights import Weights
from embellama.info import ModelInfo
from embellama.jobs import Jobs
from embellama.machine.cgroups import memory_left
from embellama.tuning import tuned_apart
from embellama_server.config import ServerConfig
from embellama_server.names import without_default_tag
from embellama_server.problems import BadRequest, Conflict, NotFound
from embellama_server.state import Charge, OpenRequests, ServedModel, ServerState
from embellama_server.telemetry.metrics import Metrics
from embellama_server.workers.dispatcher import Dispatcher

logger = logging.getLogger("embellama.server")

# The text that every worker embeds before it serves, with the same result: letters, digits, marks, another script.
CANARY = "The canary sang 3 songs, twice: «un, deux, 三»."

# Memory that a worker needs beside the weights: Python, its libraries and a context, as measured for the default model.
WORKER_BYTES = 80_000_000

# How often it is asked whether a model's workers are ready. They take at least half a second.
READY_S = 0.05


def load(config: ServerConfig, metrics: Metrics, charge: Charge | None) -> ServedModel:
    """Read a model's vocabulary and tune for it; no worker is started yet. May run in any thread.

    Args:
        config: The model's settings.
        metrics: Told of each batch.
        charge: Has callers charged, if they are.

    Raises:
        ModelLoadError: The file cannot be loaded, or is no embedding model.
    """
    weights = Weights(config, vocab_only=True)
    if weights.pooling == "none":
        raise ModelLoadError(config.model_path, "its pooling is none, which gives no vector for a text")
    config = msgspec.structs.replace(config, pooling=weights.pooling)
    config = tuned_apart(resolved(config), weights)
    jobs = Jobs(config, weights)
    info = ModelInfo.of(config, jobs, weights)
    if faster := faster_format(config, weights.header):
        logger.info("%r could be faster: %s", info.name, faster)
    canary = jobs.tokenizer.encode([CANARY], truncate="end").tokens[0]
    on_batch = functools.partial(metrics.batch, info.name)
    dispatcher = Dispatcher(config, weights.dim, canary, on_batch=on_batch)
    content = weights_hash(config.model_path)
    price = config.cached_token_price
    # All tokens cost what known ones do; inside the cache, those that are not known cost what is left.
    inside = charge(dispatcher, lambda n_tokens: n_tokens - int(price * n_tokens)) if charge else dispatcher
    backend = with_cache(inside, config, weights, content, LoopFutures())
    if charge and price:
        backend = charge(backend, lambda n_tokens: int(price * n_tokens))
    created = int(os.stat(config.model_path).st_mtime)
    digest = _digest(weights.header, created)
    return ServedModel(config, jobs, info, dispatcher, backend, created, digest, content.hex(), OpenRequests())


def check_memory(models: Sequence[ServedModel]) -> None:
    """Refuse to start more workers than there is memory for; those of one model share its weights' pages.

    Raises:
        ConfigError: They need more than is available.
    """
    n_bytes = sum(model.info.memory_bytes for model in models)
    n_workers = sum(model.config.num_workers for model in models)
    wanted, available = n_bytes + n_workers * WORKER_BYTES, _available_bytes()
    if wanted > available:
        raise ConfigError(
            f"num_workers is {n_workers}: with weights of {n_bytes / 1e6:.0f} MB they need about "
            f"{wanted / 1e6:.0f} MB, and {available / 1e6:.0f} MB are available"
        )


def described(model: ServedModel) -> str:
    """Describe a model in a line of the log."""
    info, config = model.info, model.config
    aliases = f" (also {', '.join(config.aliases)})" if config.aliases else ""
    return (
        f"{info.name!r}{aliases}: {info.architecture}, {info.quantization}, {info.dim} dimensions, up to {info.n_ctx} "
        f"tokens, pooling {info.pooling}, {config.num_workers} workers computing with {info.compute}, from {info.path}"
    )


def reread_prompts(state: ServerState, models: Iterable[ServedModel]) -> None:
    """Read the files of prompts of models that are served again, and give requests to come what is in them now.

    A request that has its model keeps the prompts that it has. Of a file that is wrong, or has another content for a
    version that was offered, nothing is taken; the log says why.
    """
    by_file: dict[str, list[ServedModel]] = {}
    for model in models:
        by_file.setdefault(model.config.prompts_file, []).append(model)
    by_file.pop("", None)
    for file, its_models in by_file.items():
        try:
            if Path(file).is_fifo():  # nobody may be writing into it
                raise ConfigError(f"{file}: a pipe cannot be read again")
            found = [(model, model.jobs.prompts_now()) for model in its_models]
            for model, prompts in found:
                state.prompt_versions.check(model.info.name, prompts)
        except ConfigError as error:
            logger.error("the prompts that were read before stay: %s", error)
            continue
        for model, prompts in found:
            state.serve(model.with_prompts(prompts))
            changes = ", ".join(model.jobs.prompts.changes(prompts)) or "nothing"
            logger.info("the prompts of %r were read from %s; %s changed", model.info.name, file, changes)


async def workers_ready(model: ServedModel, failed: "asyncio.Future[None]", state: ServerState) -> None:
    """Wait until all workers of a model are ready.

    Args:
        model: The model, whose workers were started.
        failed: What the dispatcher's `start` returned.
        state: The server's, which may be told to stop meanwhile.

    Raises:
        ModelLoadError: They cannot serve.
        Unavailable: The server stops.
    """
    while (pool := model.backend.state).status != "ok":
        if failed.done():
            failed.result()
        if pool.trouble:
            raise ModelLoadError(model.info.path, pool.trouble)
        if state.stopping:
            raise Unavailable("the server is shutting down")
        await asyncio.sleep(READY_S)


class ModelChanges:
    """Loads, swaps and unloads models while the server runs, one at a time; used on the event loop.

    Attributes:
        loading: The name of the model that is being loaded, or "".
    """

    def __init__(self, state: ServerState):
        """Prepare for a server; raises `ConfigError` if its `models_dir` is no folder."""
        self._state = state
        self._folder = Path(state.config.models_dir).resolve()
        self._tasks: set[asyncio.Task[None]] = set()
        self.loading = ""
        if state.config.models_dir and not self._folder.is_dir():
            raise ConfigError(f"models_dir is {state.config.models_dir!r}: there is no such folder")

    def check_allowed(self) -> None:
        """Raise `NotFound` unless models may be changed."""
        if not self._state.config.models_dir:
            raise NotFound("models are not changed while this server runs; started with --models-dir, it does so")

    async def load(self, name: str, settings: dict[str, Any]) -> ServedModel:
        """Serve a model from a file, in the place of the one of this name if there is one.

        That one gets requests until all workers of the new one are ready, and answers those that it got.

        Args:
            name: The model's name.
            settings: `path` of the file, below `models_dir`, and the model's own settings.

        Raises:
            BadRequest: A setting is wrong, or the path is not one of a file below `models_dir`.
            Conflict: Another change is under way, or the name is another model's.
            ModelLoadError: The file cannot be loaded, or its workers cannot serve.
            ConfigError: A setting is wrong, or there is too little memory.
        """
        with self._alone(name):
            old = self._find(name)
            config = self._config(old.info.name if old else name, settings, old)
            self._check_names(config, old)
            logger.info("loading %r from %s", config.model_name, config.model_path)
            started_at = time.monotonic()
            try:
                model = await self._loaded(config)
            except (ConfigError, ModelLoadError) as error:
                logger.error("%r was not loaded, what is served stays: %s", config.model_name, error)
                raise
            self._state.serve(model)
            reread_prompts(self._state, [model])  # the signal to do so may have come meanwhile
            model = self._state.models[model.info.name]
        logger.info("loaded in %.1f s: %s", time.monotonic() - started_at, described(model))
        if old:
            self._let_go(old)
        return model

    def unload(self, name: str) -> ServedModel:
        """Give a model no more requests, and stop its workers when it has answered those it has.

        Raises:
            ModelNotFound: There is no such model.
            Conflict: It is the only one, or another change is under way.
        """
        with self._alone():
            model = self._state.model(name)
            if model is not self._find(name):
                raise Conflict(f"{name!r} is an alias of {model.info.name!r}; unload that", "name")
            if len(self._state.models) == 1:
                raise Conflict(f"{name!r} is the only model: without one, there is nothing to serve", "name")
            self._state.stop_serving(model)
        self._let_go(model)
        return model

    @contextlib.contextmanager
    def _alone(self, name: str = "") -> Iterator[None]:
        """Refuse other changes meanwhile."""
        if self._state.stopping:
            raise Unavailable("the server is shutting down")
        if self.loading:
            raise Conflict(f"{self.loading!r} is being loaded; one model is at a time")
        self.loading = name
        try:
            yield
        finally:
            self.loading = ""

    def _find(self, name: str) -> ServedModel | None:
        """Find the model of a name that is no alias."""
        known = without_default_tag(name)
        models = self._state.models.values()
        return next((model for model in models if without_default_tag(model.info.name) == known), None)

    def _config(self, name: str, settings: dict[str, Any], old: ServedModel | None) -> ServerConfig:
        """Make a model's config: what the settings don't say is as the server's say, but for the old one's aliases."""
        for field in ("model_path", "model_name"):
            if field in settings:
                raise BadRequest(f"{field}: the file is named by path, the model by where this is sent to", field)
        own = {"aliases": old.config.aliases if old else (), **settings, "model_name": name}
        own["model_path"] = self._file("path", own.pop("path", None))
        if own.get("prompts_file"):
            own["prompts_file"] = self._file("prompts_file", own["prompts_file"])
        return self._state.config.pool(own)

    def _file(self, field: str, given: object) -> str:
        """Return the path of a file below `models_dir`, wherever links lead; raises `BadRequest`."""
        folder = self._state.config.models_dir
        if not isinstance(given, str) or not given or "\0" in given:
            raise BadRequest(f"{field} is {given!r}; it must be the path of a file below {folder}", field)
        path = (self._folder / given).resolve()
        if not path.is_relative_to(self._folder):
            raise BadRequest(f"{field} is {given!r}: that is outside {folder}", field)
        if not path.is_file():
            raise BadRequest(f"{field} is {given!r}: there is no such file below {folder}", field)
        return str(path)

    def _check_names(self, config: ServerConfig, old: ServedModel | None) -> None:
        """Raise `Conflict` if a name of the model is one of another."""
        for name in config.names:
            owner = self._state.names.get(name)
            if owner and owner is not old:
                raise Conflict(f"{name!r} is a name of {owner.info.name!r} already")

    async def _loaded(self, config: ServerConfig) -> ServedModel:
        """Load a model, and return it once its workers are ready."""
        model = await asyncio.to_thread(load, config, self._state.metrics, self._state.charge)
        self._state.prompt_versions.check(model.info.name, model.jobs.prompts)
        check_memory([model])
        try:
            await workers_ready(model, _start(model), self._state)
        except BaseException:
            await model.close(at_once=True)
            raise
        return model

    def _let_go(self, model: ServedModel) -> None:
        self._state.leaving.append(model)
        task = asyncio.create_task(self._close(model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self, model: ServedModel) -> None:
        with contextlib.suppress(TimeoutError):  # then none of them may still get a row
            async with asyncio.timeout(self._state.config.timeout_ms / 1000):
                await model.requests.ended()
        await model.close(at_once=False)
        self._state.leaving.remove(model)
        logger.info("unloaded %r from %s", model.info.name, model.info.path)
        del model
        gc.collect()  # its parts refer to each other; a millisecond, as what was there at the start is frozen


def _start(model: ServedModel) -> "asyncio.Future[None]":
    try:
        return model.dispatcher.start()
    except OSError as error:
        raise ModelLoadError(model.info.path, f"its workers cannot be started: {error.strerror}") from None


def _digest(header: Header, created: int) -> str:
    """Tell a model's file from any other, without reading gigabytes of weights: by its header, size and time."""
    facts = (header.values, header.tensors, header.n_values, header.n_bytes, created)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _available_bytes() -> int:
    """Return how much memory this process and its children may still take."""
    available = int(psutil.virtual_memory().available)
    left = memory_left()  # of a container's own limit
    return available if left is None else min(available, left)
