"""Run the server: from settings to exit.

load vocabulary ──► bind socket ──► start workers ──► uvicorn
                                                        │
SIGTERM, SIGINT ──► stop accepting, answer what was accepted, stop the workers, exit 0
a model that does not load in a worker ──► the same, exit 1
"""

import asyncio
import gc
import logging
import os
import signal
import socket

import click
import uvicorn
import uvloop

from embellama.errors import ModelLoadError
from embellama.tokenizer import Tokenizer
from embellama.weights import Weights
from embellama_server.app import Server
from embellama_server.config import ServerConfig
from embellama_server.dispatcher import Dispatcher

logger = logging.getLogger("embellama.server")

# What every worker embeds before it serves, and must embed alike: letters, digits, punctuation, another script.
CANARY = "The canary sang 3 songs, twice: «un, deux, 三»."


def serve(config: ServerConfig) -> None:
    """Serve until told to stop.

    Raises:
        ModelLoadError: The file cannot be loaded, or is no embedding model.
        click.ClickException: The address cannot be listened on.
    """
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    front, dispatcher = build(config)
    with _listen(config) as listener:
        http = _Http(
            front,
            uvicorn.Config(
                front.app(),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Longer than clients keep idle connections (httpx: 5 s), so that the client is the one to close.
                timeout_keep_alive=65,
                # Every request is answered by then; a connection still open is a client that does not finish its own.
                timeout_graceful_shutdown=config.timeout_ms // 1000 + 1,
            ),
        )
        # uvicorn raises the signal that stopped it once more when it is done, to this: the exit status stays 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(http, "should_exit", True))
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
        self._front = front

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._front.stop_reading()
        await super().shutdown(sockets)


def build(config: ServerConfig) -> tuple[Server, Dispatcher]:
    """Load the vocabulary, and make the front and the pool, not yet started, for a checked config.

    Raises:
        ModelLoadError: The file cannot be loaded.
    """
    # Texts are tokenised by one thread; more would take turns with the workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    weights = Weights(config, vocab_only=True)
    if weights.pooling in ("rank", "none"):
        raise ModelLoadError(config.model_path, f"its pooling is {weights.pooling}, which gives no vector for a text")
    tokenizer = Tokenizer(weights, config.n_ctx)
    canary = tokenizer.encode([CANARY], truncate="end").tokens[0]
    dispatcher = Dispatcher(config, weights.dim, canary)
    created = int(os.stat(config.model_path).st_mtime)
    return Server(config, tokenizer, dispatcher, weights.dim, created), dispatcher


async def _run(http: uvicorn.Server, listener: socket.socket, dispatcher: Dispatcher) -> None:
    """Serve until a signal, or until the model turns out not to load in a worker: then raise why."""
    failed = dispatcher.start()
    try:
        serving = asyncio.ensure_future(http.serve(sockets=[listener]))
        await asyncio.wait([serving, failed], return_when=asyncio.FIRST_COMPLETED)
        http.should_exit = True
        await serving
        if failed.done():
            failed.result()
    finally:
        await dispatcher.close()


def _listen(config: ServerConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.ClickException(f"cannot listen on {config.host} port {config.port}: {reason}") from None
