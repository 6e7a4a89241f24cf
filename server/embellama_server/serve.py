"""Run the server: from settings to exit.

load vocabulary ──► tune ──► bind socket ──► start workers ──► uvicorn
                                                                 │
SIGTERM, SIGINT ──► stop accepting, answer what was accepted, stop the workers, exit 0; a second one: at once
SIGHUP          ──► read certificate, keys and prompts again; replace the workers, one after another, once loaded
a model that does not load in a worker ──► the same, exit 1
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
from types import FrameType
from typing import cast

import uvicorn
import uvloop
from starlette.types import ASGIApp

from embellama.cli.flags import left_out_variables
from embellama_server import hangups
from embellama_server.application import Application
from embellama_server.config import ServerConfig
from embellama_server.listening import listen
from embellama_server.models import described, reread_prompts
from embellama_server.protocol import Protocol
from embellama_server.telemetry.logs import set_up_logging
from embellama_server.tls import Certificate

logger = logging.getLogger("embellama.server")

# So long after being told to stop, the event loop has read what had arrived by then. Longer delays the end.
ARRIVED_S = 0.02

# So long after being told to stop, connections on which requests come one after another have been told to end, too. A
# client that asks more rarely may find its connection closed; longer delays the end where connections are idle.
GOODBYE_S = 0.5


def serve(config: ServerConfig) -> None:
    """Serve until told to stop.

    Raises:
        ConfigError: A setting is wrong, or names a file that is.
        ModelLoadError: The file cannot be loaded, or is no embedding model.
        Unavailable: No worker process can be started.
        click.ClickException: The address cannot be listened on.
    """
    set_up_logging(config)
    for name in left_out_variables(ServerConfig):
        logger.warning("%s=%s is left out: it is the address of a Kubernetes Service", name, os.environ[name])
    _raise_descriptor_limit()
    # Workers import nothing that lies in the current folder, as this process does not.
    os.environ["PYTHONSAFEPATH"] = "1"
    certificate = Certificate(config.tls_cert, config.tls_key) if config.tls_cert else None
    application = Application(config)
    with contextlib.ExitStack() as stack:
        stack.callback(application.close_telemetry)
        listeners = [stack.enter_context(made) for made in listen(config.host, config.port)]
        http = _HttpServer(application, _uvicorn_config(config, application.asgi, certificate))
        # uvicorn raises the signal that stopped it once more when it is done, to this: the exit status stays 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, http.handle_exit)
        for model in application.state.models.values():
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
            runner.run(_run(http, listeners, certificate))


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

    def __init__(self, application: Application, config: uvicorn.Config):
        super().__init__(config)
        self.application = application

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; on a second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Read what has arrived: uvicorn hangs up on connections that have no request, and one may be in the socket.
        await asyncio.sleep(ARRIVED_S)
        for server in self.servers:
            server.close()  # no more connections
        await self._end_connections()
        await self.application.stop()
        await super().shutdown(sockets)

    async def _end_connections(self) -> None:
        """Have clients close connections, as long as they do so soon."""
        loop = asyncio.get_running_loop()
        end = loop.time() + GOODBYE_S
        connections = self.server_state.connections
        for connection in connections:
            cast(Protocol, connection).end_soon()
        while connections and loop.time() < end and not self.force_exit:  # noqa: ASYNC110 (nobody tells of the last)
            await asyncio.sleep(ARRIVED_S)


async def _run(http: _HttpServer, listeners: list[socket.socket], certificate: Certificate | None) -> None:
    """Serve until a signal comes, or until a model does not load in a worker: then raise that error."""
    loop, restarts, application = asyncio.get_running_loop(), set(), http.application

    async def restart_all() -> None:
        for model in list(application.state.models.values()):
            await model.dispatcher.restart_workers()

    def renew() -> None:
        if http.should_exit:
            return
        if certificate:
            certificate.renew()
        if application.keyring:
            application.keyring.reload()
        reread_prompts(application.state, list(application.state.models.values()))
        task = loop.create_task(restart_all())
        restarts.add(task)
        task.add_done_callback(restarts.discard)

    try:
        failures = application.start()
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
        await application.close(at_once=http.force_exit)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; shells often start programs with less."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit, and does not say it here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
