"""Run the server: from settings to exit.

load vocabulary ──► tune ──► bind socket ──► start workers ──► uvicorn
                                                                 │
SIGTERM, SIGINT ──► stop accepting, answer what was accepted, stop the workers, exit 0; a second one: at once
SIGHUP          ──► read the keys again; replace the workers, one after another, as soon as they have loaded
a model that does not load in a worker ──► the same, exit 1
"""

import asyncio
import contextlib
import functools
import gc
import hashlib
import logging
import os
import resource
import signal
import socket
from types import FrameType
from typing import Any

import click
import msgspec
import psutil
import uvicorn
import uvloop

from embellama.advice.formats import faster_format
from embellama.backend import Backend
from embellama.cli.flags import left_out_variables
from embellama.errors import ConfigError, ModelLoadError
from embellama.gguf.compute import resolved
from embellama.gguf.header import Header
from embellama.gguf.weights import Weights
from embellama.info import ModelInfo
from embellama.jobs import Jobs
from embellama.machine.cgroups import memory_left
from embellama.tuning import tuned_apart
from embellama_server import hangups
from embellama_server.app import build_app
from embellama_server.config import ServerConfig
from embellama_server.gateway.charging import ChargingBackend
from embellama_server.gateway.keyring import Keyring
from embellama_server.gateway.meters import Ledger
from embellama_server.listening import listen
from embellama_server.protocol import Protocol
from embellama_server.state import ServedModel, ServerState
from embellama_server.telemetry.logs import set_up_logging
from embellama_server.telemetry.metrics import Metrics
from embellama_server.workers.dispatcher import Dispatcher

logger = logging.getLogger("embellama.server")

# The text that every worker embeds before it serves, with the same result: letters, digits, marks, another script.
CANARY = "The canary sang 3 songs, twice: «un, deux, 三»."

# So long after being told to stop, the event loop has read what had arrived by then. Longer delays the end.
ARRIVED_S = 0.02

# Memory that a worker needs beside the weights: Python, its libraries and a context, as measured for the default model.
WORKER_BYTES = 80_000_000


def serve(config: ServerConfig) -> None:
    """Serve until told to stop.

    Raises:
        ModelLoadError: The file cannot be loaded, or is no embedding model.
        click.ClickException: The address cannot be listened on.
    """
    set_up_logging(config)
    for name in left_out_variables(ServerConfig):
        logger.warning("%s=%s is left out: it is the address of a Kubernetes Service", name, os.environ[name])
    _raise_descriptor_limit()
    keyring = _keyring(config)
    state = build(config, keyring)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(made) for made in listen(config.host, config.port)]
        http = _HttpServer(
            state,
            uvicorn.Config(
                build_app(state, keyring),
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                # Longer than clients keep idle connections (httpx: 5 s), so that the client is the one to close.
                timeout_keep_alive=65,
                timeout_graceful_shutdown=config.drain_timeout_ms / 1000,  # type: ignore[arg-type]
            ),
        )
        # uvicorn raises the signal that stopped it once more when it is done, to this: the exit status stays 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, http.handle_exit)
        for model in state.models.values():
            logger.info("serving %s", _described(model))
        for listener in listeners:
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        # All objects made by now stay for good: the collector need not walk through them again and again.
        gc.collect()
        gc.freeze()
        # By default a body of a million lists has the collector walk through them dozens of times while it is parsed.
        gc.set_threshold(100_000, 50, 100)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(http, listeners, keyring))


class _HttpServer(uvicorn.Server):
    """A uvicorn server that, when told to stop, does not wait for requests that have not arrived."""

    def __init__(self, state: ServerState, config: uvicorn.Config):
        super().__init__(config)
        self.state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; on a second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Read what has arrived: uvicorn hangs up on connections that have no request, and one may be in the socket.
        await asyncio.sleep(ARRIVED_S)
        self.state.stop_reading()
        await super().shutdown(sockets)


def _keyring(config: ServerConfig) -> Keyring | None:
    if not config.keys_file:
        return None
    return Keyring(config.keys_file, Ledger(config.redis_url, fails_open=config.limits_without_redis == "open"))


def build(config: ServerConfig, keyring: Keyring | None = None) -> ServerState:
    """Load the models' vocabularies, tune, and make the server's state for a checked config; no worker is started yet.

    With a keyring, tokens are charged to its keys.

    Raises:
        ConfigError: A model's settings are wrong, or there is too little memory.
        ModelLoadError: A file cannot be loaded.
    """
    # Workers import nothing that lies in the current folder, as this process does not.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Texts are tokenized by one thread; more would take turns with the workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    backends: dict[str, Backend[Any]] = {}
    metrics = Metrics(backends)
    models = [_served_model(model_config, metrics, keyring) for model_config in config.pools()]
    _check_memory(models)
    backends |= {model.info.name: model.backend for model in models}
    return ServerState(config, models, metrics)


def _served_model(config: ServerConfig, metrics: Metrics, keyring: Keyring | None) -> ServedModel:
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
    backend: Backend[Any] = ChargingBackend(dispatcher, keyring) if keyring else dispatcher
    created = int(os.stat(config.model_path).st_mtime)
    return ServedModel(config, jobs, info, dispatcher, backend, created, _digest(weights.header, created))


def _digest(header: Header, created: int) -> str:
    """Tell a model's file from any other, without reading gigabytes of weights: by its header, size and time."""
    facts = (header.values, header.tensors, header.n_values, header.n_bytes, created)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _described(model: ServedModel) -> str:
    info, config = model.info, model.config
    aliases = f" (also {', '.join(config.aliases)})" if config.aliases else ""
    return (
        f"{info.name!r}{aliases}: {info.architecture}, {info.quantization}, {info.dim} dimensions, up to {info.n_ctx} "
        f"tokens, pooling {info.pooling}, {config.num_workers} workers computing with {info.compute}, from {info.path}"
    )


async def _run(http: _HttpServer, listeners: list[socket.socket], keyring: Keyring | None) -> None:
    """Serve until a signal comes, or until a model does not load in a worker: then raise that error."""
    loop, restarts = asyncio.get_running_loop(), set()
    dispatchers = [model.dispatcher for model in http.state.models.values()]

    async def restart_all() -> None:
        for dispatcher in dispatchers:
            await dispatcher.restart_workers()

    def restart_workers() -> None:
        if http.should_exit:
            return
        if keyring:
            keyring.reload()
        task = loop.create_task(restart_all())
        restarts.add(task)
        task.add_done_callback(restarts.discard)

    try:
        failures = []
        for dispatcher in dispatchers:
            try:
                failures.append(dispatcher.start())
            except OSError as error:
                raise click.ClickException(f"cannot start {dispatcher.n_workers} workers: {error.strerror}") from None
        hangups.on_hangup(lambda: loop.call_soon_threadsafe(restart_workers))
        serving = asyncio.ensure_future(http.serve(sockets=listeners))
        await asyncio.wait([serving, *failures], return_when=asyncio.FIRST_COMPLETED)
        http.should_exit = True
        await serving
        for failed in failures:
            if failed.done():
                failed.result()
    finally:
        hangups.ignore()
        for task in restarts:
            task.cancel()
        await asyncio.gather(*(model.close(at_once=http.force_exit) for model in http.state.models.values()))
        if http.state.n_unanswered:
            logger.error("%d accepted requests could not be answered in time; they got 503", http.state.n_unanswered)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; shells often start programs with less."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit, and does not say it here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check_memory(models: list[ServedModel]) -> None:
    """Refuse to start more workers than there is memory for; those of one model share its weights' pages."""
    n_bytes = sum(model.info.memory_bytes for model in models)
    n_workers = sum(model.config.num_workers for model in models)
    wanted, available = n_bytes + n_workers * WORKER_BYTES, _available_bytes()
    if wanted > available:
        raise ConfigError(
            f"num_workers is {n_workers}: with weights of {n_bytes / 1e6:.0f} MB they need about "
            f"{wanted / 1e6:.0f} MB, and {available / 1e6:.0f} MB are available"
        )


def _available_bytes() -> int:
    """Return how much memory this process and its children may still take."""
    available = int(psutil.virtual_memory().available)
    left = memory_left()  # of a container's own limit
    return available if left is None else min(available, left)
