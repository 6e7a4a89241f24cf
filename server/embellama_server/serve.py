"""Run the server: from settings to exit.

load vocabulary ──► bind socket ──► start workers ──► uvicorn
                                                        │
SIGTERM, SIGINT ──► stop accepting, answer what was accepted, stop the workers, exit 0; a second one: at once
SIGHUP          ──► replace the workers, one after another
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
from pathlib import Path
from types import FrameType

import click
import uvicorn
import uvloop

from embellama.calls import Calls
from embellama.errors import ConfigError, ModelLoadError
from embellama.weights import Weights
from embellama_server.app import Server
from embellama_server.config import ServerConfig
from embellama_server.dispatcher import Dispatcher
from embellama_server.protocol import Protocol

logger = logging.getLogger("embellama.server")

# What every worker embeds before it serves, and must embed alike: letters, digits, punctuation, another script.
CANARY = "The canary sang 3 songs, twice: «un, deux, 三»."

# So long after being told to stop, the event loop has read what had arrived by then. Longer delays the end.
ARRIVED_S = 0.02

# What a worker needs beside the weights: Python, its libraries and a context, as measured for the default model.
WORKER_BYTES = 80_000_000


def serve(config: ServerConfig) -> None:
    """Serve until told to stop.

    Raises:
        ModelLoadError: The file cannot be loaded, or is no embedding model.
        click.ClickException: The address cannot be listened on.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _raise_descriptor_limit()
    front, dispatcher = build(config)
    with _listen(config) as listener:
        http = _Http(
            front,
            uvicorn.Config(
                front.app(),
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Longer than clients keep idle connections (httpx: 5 s), so that the client is the one to close.
                timeout_keep_alive=65,
                timeout_graceful_shutdown=config.drain_timeout_ms / 1000,  # type: ignore[arg-type]
            ),
        )
        # uvicorn raises the signal that stopped it once more when it is done, to this: the exit status stays 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, http.handle_exit)
        host, port = listener.getsockname()[:2]
        logger.info("serving %r from %s", config.model_name, config.model_path)
        logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        # What exists by now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        # By default a body of a million lists has the collector walk through them dozens of times while it is parsed.
        gc.set_threshold(100_000, 50, 100)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(http, listener, dispatcher))


class _Http(uvicorn.Server):
    """uvicorn, that on its way out does not wait for requests that are not here yet."""

    def __init__(self, front: Server, config: uvicorn.Config):
        super().__init__(config)
        self.front = front

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; on a second signal at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Read what has arrived: uvicorn hangs up on connections that have no request, and one may be in the socket.
        await asyncio.sleep(ARRIVED_S)
        self.front.stop_reading()
        await super().shutdown(sockets)


def build(config: ServerConfig) -> tuple[Server, Dispatcher]:
    """Load the vocabulary, and make the front and the pool, not yet started, for a checked config.

    Raises:
        ModelLoadError: The file cannot be loaded.
    """
    # Texts are tokenised by one thread; more would take turns with the workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    weights = Weights(config, vocab_only=True)
    _check_memory(config, weights.header.n_bytes)
    if weights.pooling in ("rank", "none"):
        raise ModelLoadError(config.model_path, f"its pooling is {weights.pooling}, which gives no vector for a text")
    calls = Calls(config, weights)
    canary = calls.tokenizer.encode([CANARY], truncate="end").tokens[0]
    dispatcher = Dispatcher(config, weights.dim, canary)
    created = int(os.stat(config.model_path).st_mtime)
    return Server(config, calls, dispatcher, weights.dim, created), dispatcher


async def _run(http: _Http, listener: socket.socket, dispatcher: Dispatcher) -> None:
    """Serve until a signal, or until the model turns out not to load in a worker: then raise why."""
    loop, restarts = asyncio.get_running_loop(), set()

    def restart_workers() -> None:
        task = loop.create_task(dispatcher.restart_workers())
        restarts.add(task)
        task.add_done_callback(restarts.discard)

    loop.add_signal_handler(signal.SIGHUP, restart_workers)
    try:
        try:
            failed = dispatcher.start()
        except OSError as error:
            raise click.ClickException(f"cannot start {dispatcher.n_workers} workers: {error.strerror}") from None
        serving = asyncio.ensure_future(http.serve(sockets=[listener]))
        await asyncio.wait([serving, failed], return_when=asyncio.FIRST_COMPLETED)
        http.should_exit = True
        await serving
        if failed.done():
            failed.result()
    finally:
        await dispatcher.close(at_once=http.force_exit)
        if http.front.n_unanswered:
            logger.error("%d accepted requests could not be answered in time; they got 503", http.front.n_unanswered)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; shells often start programs with less."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit, and does not say it here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check_memory(config: ServerConfig, n_bytes: int) -> None:
    """Refuse to start more workers than there is memory for; they share the weights' pages."""
    wanted, available = n_bytes + config.num_workers * WORKER_BYTES, _available_bytes()
    if available is not None and wanted > available:
        raise ConfigError(
            f"num_workers is {config.num_workers}: with weights of {n_bytes / 1e6:.0f} MB they need about "
            f"{wanted / 1e6:.0f} MB, and {available / 1e6:.0f} MB are available"
        )


def _available_bytes() -> int | None:
    """Return how much memory this process and its children may still take; None where that is not known."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max" is none
        folder = Path("/sys/fs/cgroup")
        most, used = (folder / "memory.max").read_text(), (folder / "memory.current").read_text()
        found.append(int(most) - int(used))
    return min(found, default=None)


def _listen(config: ServerConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.ClickException(f"cannot listen on {config.host} port {config.port}: {reason}") from None
