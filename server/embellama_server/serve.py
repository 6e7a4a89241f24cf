"""Run the server: from settings to exit.

load vocabulary ──► tune ──► bind socket ──► start workers ──► uvicorn
                                                                 │
SIGTERM, SIGINT ──► stop accepting, answer what was accepted, stop the workers, exit 0; a second one: at once
SIGHUP          ──► read certificate, keys and prompts again; replace the workers, one after another, once loaded
a model that does not load in a worker ──► the same, exit 1
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import resource
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
import uvicorn
import uvloop
from starlette.types import ASGIApp

from embellama.cli.flags import left_out_variables
from embellama.errors import ConfigError
from embellama_server import hangups
from embellama_server.app import build_app
from embellama_server.config import ServerConfig
from embellama_server.gateway.charging import ChargingBackend
from embellama_server.gateway.keyring import Keyring
from embellama_server.gateway.meters import LimitStore
from embellama_server.jobs.collector import BatchCollector
from embellama_server.jobs.folder import DataFolder
from embellama_server.jobs.service import BatchService
from embellama_server.listening import listen
from embellama_server.models import check_memory, described, load, reread_prompts
from embellama_server.protocol import Protocol
from embellama_server.state import Charge, ServerState
from embellama_server.telemetry.logs import set_up_logging
from embellama_server.telemetry.metrics import Metrics
from embellama_server.telemetry.request_log import RequestLog
from embellama_server.tls import Certificate

if TYPE_CHECKING:  # it needs the extra `otel`
    from embellama_server.telemetry.traces import Tracer

logger = logging.getLogger("embellama.server")

# So long after being told to stop, the event loop has read what had arrived by then. Longer delays the end.
ARRIVED_S = 0.02


def serve(config: ServerConfig) -> None:
    """Serve until told to stop.

    Raises:
        ConfigError: A setting is wrong, or names a file that is.
        ModelLoadError: The file cannot be loaded, or is no embedding model.
        click.ClickException: The address cannot be listened on.
    """
    set_up_logging(config)
    for name in left_out_variables(ServerConfig):
        logger.warning("%s=%s is left out: it is the address of a Kubernetes Service", name, os.environ[name])
    _raise_descriptor_limit()
    # Workers import nothing that lies in the current folder, as this process does not.
    os.environ["PYTHONSAFEPATH"] = "1"
    certificate = Certificate(config.tls_cert, config.tls_key) if config.tls_cert else None
    keyring = _keyring(config)
    state = build(config, keyring)
    batches = _batches(state, keyring)
    with contextlib.ExitStack() as stack:
        if state.tracer:
            stack.callback(state.tracer.close)
        if state.request_log:
            stack.callback(state.request_log.close)
        listeners = [stack.enter_context(made) for made in listen(config.host, config.port)]
        app = build_app(state, keyring, batches)
        http = _HttpServer(state, _uvicorn_config(config, app, certificate), batches)
        # uvicorn raises the signal that stopped it once more when it is done, to this: the exit status stays 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, http.handle_exit)
        for model in state.models.values():
            logger.info("serving %s", described(model))
        for listener in listeners:
            host, port = listener.getsockname()[:2]
            scheme = "https" if certificate else "http"
            logger.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
        # All objects made by now stay for good: the collector need not walk through them again and again.
        gc.collect()
        gc.freeze()
        # By default a body of a million lists has the collector walk through them dozens of times while it is parsed.
        gc.set_threshold(100_000, 50, 100)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(http, listeners, certificate, keyring))


def _uvicorn_config(config: ServerConfig, app: ASGIApp, certificate: Certificate | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        root_path=config.root_path,
        ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
        timeout_keep_alive=config.keep_alive_s,
        timeout_graceful_shutdown=config.drain_timeout_ms / 1000,  # type: ignore[arg-type]
    )


class _HttpServer(uvicorn.Server):
    """A uvicorn server that, when told to stop, does not wait for requests that have not arrived."""

    def __init__(self, state: ServerState, config: uvicorn.Config, batches: BatchService | None):
        super().__init__(config)
        self.state, self.batches = state, batches

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; on a second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Read what has arrived: uvicorn hangs up on connections that have no request, and one may be in the socket.
        await asyncio.sleep(ARRIVED_S)
        self.state.stop_reading()
        if self.batches:
            await self.batches.stop()  # its workers are for requests now
        await super().shutdown(sockets)


def _keyring(config: ServerConfig) -> Keyring | None:
    if not config.keys_file:
        return None
    return Keyring(config.keys_file, LimitStore(config.redis_url, fails_open=config.limits_without_redis == "open"))


def _batches(state: ServerState, keyring: Keyring | None) -> BatchService | None:
    """Return what keeps files and runs batches, if there is a folder for them; raises `ConfigError`."""
    config = state.config
    if not config.data_dir:
        return None
    folder = DataFolder(Path(config.data_dir), config.data_bytes)
    service = BatchService(state, folder, keyring.find if keyring else None)
    state.metrics.add(BatchCollector(service))
    return service


def build(config: ServerConfig, keyring: Keyring | None = None) -> ServerState:
    """Load the models' vocabularies, tune, and make the server's state for a checked config; no worker is started yet.

    With a keyring, tokens are charged to its keys.

    Raises:
        ConfigError: A model's settings are wrong, there is too little memory, or a package for a setting is missing.
        ModelLoadError: A file cannot be loaded.
    """
    # Texts are tokenized by one thread; more would take turns with the workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    metrics = Metrics()
    charge: Charge | None = functools.partial(ChargingBackend, keyring=keyring) if keyring else None
    models = [load(model_config, metrics, charge) for model_config in config.pools()]
    check_memory(models)
    return ServerState(config, models, metrics, charge, _tracer(config), _request_log(config, metrics))


def _request_log(config: ServerConfig, metrics: Metrics) -> RequestLog | None:
    """Return what writes a line for each request, if there is a folder for them; raises `ConfigError`."""
    if not config.request_log:
        return None
    request_log = RequestLog(Path(config.request_log), config.request_log_days, with_texts=config.log_texts)
    metrics.add(request_log)
    return request_log


def _tracer(config: ServerConfig) -> "Tracer | None":
    """Return what makes and sends spans of requests, if there is a collector for them."""
    if not config.otlp_endpoint:
        return None
    try:
        from embellama_server.telemetry.traces import Tracer
    except ImportError as error:
        raise ConfigError(
            f"otlp_endpoint is set, but the package {error.name} is not installed: pip install 'embellama[otel]'"
        ) from None
    return Tracer(config.otlp_endpoint, config.otlp_sample_ratio)


async def _run(
    http: _HttpServer, listeners: list[socket.socket], certificate: Certificate | None, keyring: Keyring | None
) -> None:
    """Serve until a signal comes, or until a model does not load in a worker: then raise that error."""
    loop, restarts, state = asyncio.get_running_loop(), set(), http.state

    async def restart_all() -> None:
        for model in list(state.models.values()):
            await model.dispatcher.restart_workers()

    def renew() -> None:
        if http.should_exit:
            return
        if certificate:
            certificate.renew()
        if keyring:
            keyring.reload()
        reread_prompts(state, list(state.models.values()))
        task = loop.create_task(restart_all())
        restarts.add(task)
        task.add_done_callback(restarts.discard)

    try:
        failures = []
        for model in state.models.values():
            try:
                failures.append(model.dispatcher.start())
            except OSError as error:
                n_workers = model.config.num_workers
                raise click.ClickException(f"cannot start {n_workers} workers: {error.strerror}") from None
        if http.batches:
            http.batches.start()
        hangups.on_hangup(lambda: loop.call_soon_threadsafe(renew))
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
        models = [*state.models.values(), *state.leaving]
        await asyncio.gather(*(model.close(at_once=http.force_exit) for model in models))
        if state.n_unanswered:
            logger.error("%d accepted requests could not be answered in time; they got 503", state.n_unanswered)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; shells often start programs with less."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit, and does not say it here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
