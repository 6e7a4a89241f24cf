"""`Application`: the server without its sockets, whoever has those: `serve`, or a replica of Ray Serve.

a checked config ──► build: models, keys, batches ──► Application.asgi ◄── requests
                                                   ├── start: worker processes
                                                   ├── stop: nothing new is read
                                                   └── close: what was accepted is answered, the workers end
"""

import asyncio
import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from embellama.errors import ConfigError, Unavailable
from embellama_server.app import build_app
from embellama_server.config import ServerConfig
from embellama_server.gateway.charging import ChargingBackend
from embellama_server.gateway.keyring import Keyring
from embellama_server.gateway.meters import LimitStore
from embellama_server.jobs.collector import BatchCollector
from embellama_server.jobs.folder import DataFolder
from embellama_server.jobs.service import BatchService
from embellama_server.models import check_memory, load
from embellama_server.state import Charge, ServerState
from embellama_server.telemetry.metrics import Metrics
from embellama_server.telemetry.request_log import RequestLog

if TYPE_CHECKING:  # it needs the extra `otel`
    from embellama_server.telemetry.traces import Tracer

logger = logging.getLogger("embellama.server")


class Application:
    """Models, worker processes, keys and batches, and the ASGI application over them.

    Attributes:
        state: What its parts share.
        keyring: Who may ask; None for everybody.
        batches: Keeps files and runs batches, if there is a folder for them.
        asgi: Answers requests, from `start` on.
    """

    def __init__(self, config: ServerConfig):
        """Prepare for a checked config; no worker is started yet.

        Raises:
            ConfigError, ModelLoadError: As `build` does.
        """
        self.keyring = _keyring(config)
        self.state = build(config, self.keyring)
        self.batches = _batches(self.state, self.keyring)
        self.asgi = build_app(self.state, self.keyring, self.batches)

    def start(self) -> "list[asyncio.Future[None]]":
        """Start the workers, in the running event loop.

        Returns:
            A future for each model, which fails with `ModelLoadError` where the model does not load in a worker.

        Raises:
            Unavailable: No process can be started.
        """
        failures = []
        for model in self.state.models.values():
            try:
                failures.append(model.dispatcher.start())
            except OSError as error:
                n_workers = model.config.num_workers
                raise Unavailable(f"cannot start {n_workers} workers: {error.strerror}") from None
        if self.batches:
            self.batches.start()
        return failures

    async def stop(self) -> None:
        """Give up on requests that have not wholly arrived, and on batches; what was accepted goes on."""
        self.state.stop_reading()
        if self.batches:
            await self.batches.stop()  # its workers are for requests now

    async def close(self, *, at_once: bool = False) -> None:
        """End the workers once they have computed what they hold, or `at_once`."""
        models = [*self.state.models.values(), *self.state.leaving]
        await asyncio.gather(*(model.close(at_once=at_once) for model in models))
        if self.state.n_unanswered:
            logger.error("%d accepted requests could not be answered in time; they got 503", self.state.n_unanswered)

    def close_telemetry(self) -> None:
        """Write the lines and send the spans that are left; takes a while where a collector does not answer."""
        if self.state.request_log:
            self.state.request_log.close()
        if self.state.tracer:
            self.state.tracer.close()


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
