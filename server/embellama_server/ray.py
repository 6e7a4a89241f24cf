"""The server under Ray Serve: ``serve run embellama_server.ray:app model_path=…``, or deploy/ray/serve.yaml.

args ── app: settings, checked ──► a deployment ──► replicas, on any node
                                                       │
client ── HTTP ──► Serve's proxy ──► AsgiApp ──► Application.asgi ──► the replica's own worker processes
                                        ▲
Serve ── check_health: as /readyz ──────┤
      ── record_autoscaling_stats ──────┤──► WaitPolicy: how many replicas
      ── its end: drained, then closed ─╯

Serve has the sockets, so settings that are about them are refused, and so are those of files that one replica has and
the others have not. An application of Serve's is one server; with another `route_prefix` there is another beside it.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import ray
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embellama.bulk.cluster import for_cpus
from embellama.bulk.fetch import fetched
from embellama.config import convert, n_cores
from embellama.errors import ConfigError
from embellama_server.application import Application
from embellama_server.config import ServerConfig
from embellama_server.models import workers_ready
from embellama_server.telemetry.logs import set_up_logging
from embellama_server.workers import worker

# What Serve does in the place of the server, and what a replica would have for itself alone.
UNUSED = ("host", "port", "tls_cert", "tls_key", "keep_alive_s", "models_dir", "data_dir", "data_bytes")

# Requests of a replica for each that may wait in its room: so many that Serve, whose routers ask again and again where
# a replica is full, never has one wait. What is too much is answered 503 at once.
ONGOING = 4

# After its requests are answered, a replica's workers have this long to end.
END_S = 10.0

# Names of what replicas tell of themselves.
WAIT, BUSY = "embellama_wait_seconds", "embellama_busy"


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application of Serve's.

    Args:
        args: Settings of the server by name, such as ``model_path``, ``num_workers`` or ``models``; as texts where they
            come from the command line. Paths are of each node; models may be URIs (`embellama.bulk.fetch`).

    Raises:
        ConfigError: A setting is wrong, or means nothing here.
    """
    config = settings_of(args)
    return deployment_of(config).bind(config)


def deployment_of(config: ServerConfig) -> serve.Deployment:
    """Return the deployment of replicas with a config, which is bound to it; Serve's own options are its `options`'."""
    return serve.deployment(serve.ingress()(Replica)).options(
        name="Embellama",
        max_ongoing_requests=ONGOING * config.queue_size,
        graceful_shutdown_timeout_s=config.drain_timeout_ms / 1000 + END_S,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},  # `access_log` writes one that tells more
    )


def settings_of(args: Mapping[str, Any]) -> ServerConfig:
    """Return checked settings.

    Raises:
        ConfigError: One is wrong, or means nothing here.
    """
    for name in args:
        if name in UNUSED:
            raise ConfigError(f"{name} means nothing under Ray Serve")
        if name not in ServerConfig.__struct_fields__:
            raise ConfigError(f"there is no setting {name!r}")
    config = convert(dict(args), ServerConfig, strict=False)
    checked = config.checked()
    checked.pools()  # those of [[models]], too
    return msgspec.structs.replace(checked, num_workers=config.num_workers)  # the CPUs here tell nothing


class Replica:
    """One server of several, for `serve.ingress`."""

    def __init__(self, config: ServerConfig):
        self._config = config

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load the models, start their workers, on as many CPUs as Serve gave this replica, and wait for all of them.

        Returns:
            What Serve gives requests to.

        Raises:
            ConfigError, ModelLoadError, Unavailable: As `Application` does.
        """
        config = self._config
        set_up_logging(config)
        os.environ["PYTHONSAFEPATH"] = "1"  # workers import nothing that lies in the current folder
        _be_light_to_import()
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        config = _with_files(config if cpus >= n_cores() else for_cpus(config, cpus))
        self._application = await asyncio.to_thread(Application, config.checked())
        self._busy_s, self._busy_at = 0.0, time.monotonic()
        state = self._application.state
        try:
            for model, failed in zip(state.models.values(), self._application.start(), strict=True):
                await workers_ready(model, failed, state)
        except BaseException:
            await self._application.close(at_once=True)
            raise
        return AsgiApp(self._application)

    def check_health(self) -> None:
        """Raise RuntimeError while ``/readyz`` would not answer 200; Serve replaces a replica that goes on so."""
        if unready := self._application.state.unready:
            raise RuntimeError(unready)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the seconds of work that wait here, and which share of the workers' time since last asked was used."""
        pools = [model.backend.state for model in self._application.state.models.values()]
        busy_s, now = sum(each.busy_s for pool in pools for each in pool.workers), time.monotonic()
        possible_s = sum(pool.n_workers for pool in pools) * (now - self._busy_at)
        share = (busy_s - self._busy_s) / possible_s if possible_s else 0.0
        self._busy_s, self._busy_at = busy_s, now
        return {WAIT: max(pool.wait_s for pool in pools), BUSY: min(1.0, max(0.0, share))}


class AsgiApp:
    """`Application.asgi` as Serve calls it: below a route prefix, with a life of its own."""

    def __init__(self, application: Application):
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        prefix, path = scope.get("root_path", ""), scope.get("path", "")
        if prefix and f"{path}/".startswith(f"{prefix}/"):
            scope = {**scope, "path": path[len(prefix) :] or "/"}
        await self._application.asgi(scope, receive, _once(send))

    async def _live(self, receive: Receive, send: Send) -> None:
        """Close the server when Serve ends the replica, which it does once its requests are answered."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._application.stop()
                await self._application.close()
                await asyncio.to_thread(self._application.close_telemetry)
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


class WaitPolicy:
    """How many replicas Serve should have: by the work that waits, and, to have fewer, by how busy they are."""

    def __init__(self, target_wait_s: float = 0.5, target_busy: float = 0.7):
        """Prepare.

        Args:
            target_wait_s: Seconds of work that may wait at a replica, on average.
            target_busy: Share of the workers' time that may be used after there are fewer replicas.

        Raises:
            ConfigError: One of them is not above 0, or the share is above 1.
        """
        for name, value, most in (("target_wait_s", target_wait_s, None), ("target_busy", target_busy, 1)):
            if not value > 0 or (most and value > most):
                raise ConfigError(f"{name} is {value!r}; it must be above 0{f' and at most {most}' if most else ''}")
        self._wait_s, self._busy = target_wait_s, target_busy

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return how many replicas there should be, before Serve's own bounds and delays, and no state."""
        n = context.current_num_replicas
        waits, busy = (_values(context.aggregated_metrics, name) for name in (WAIT, BUSY))
        if not n or not waits:
            return context.target_num_replicas, {}
        wanted = n * _mean(waits) / self._wait_s
        return (wanted if wanted > n else min(n, max(wanted, n * _mean(busy) / self._busy))), {}


def _values(metrics: Mapping[str, Mapping[Any, float]] | None, name: str) -> list[float]:
    return list(((metrics or {}).get(name) or {}).values())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _with_files(config: ServerConfig) -> ServerConfig:
    """Fetch the models' files to this node."""
    models = tuple({**table, "model_path": fetched(table["model_path"])} for table in config.models)
    return msgspec.structs.replace(config, model_path=fetched(config.model_path), models=models)


def _once(send: Send) -> Send:
    """Leave the request's id to Serve, which took it from the request, or made it, and would write it a second time."""

    async def without_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [each for each in message["headers"] if each[0] != b"x-request-id"]
            message = {**message, "headers": headers}
        await send(message)

    return without_id


def _be_light_to_import() -> None:
    """Have worker processes import the worker as their main module, instead of Ray's, as multiprocessing would."""
    with contextlib.suppress(AttributeError):
        sys.modules["__main__"].__spec__ = worker.__spec__
