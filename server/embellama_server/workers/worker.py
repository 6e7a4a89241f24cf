"""Run one worker process: load the model, then answer every batch that comes through the pipe.

   pipe ──► TaskReader ──► EmbeddingModel.encode ──► ReplyWriter ──► pipe      on the process's main thread
                                                     ▲
   the canary's row, once loaded ────────────────────┘

The server's main process decides when a worker ends. Signals from a terminal or a service manager may reach every
process of the group, so a worker ignores them; if the main process is killed, a thread sees that at once and ends the
worker.
"""

import contextlib
import importlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import msgspec

from embellama.batch import Batch, Tokens
from embellama.errors import ConfigError, EmbeddingFailed, ModelLoadError
from embellama.machine import signals
from embellama_server.config import ServerConfig
from embellama_server.workers.channel import STARTED, ReplyWriter, TaskReader

logger = logging.getLogger("embellama.worker")

# With every core computing, the front must not wait its turn for a millisecond of work. At 0 its event loop's worst
# stall among 200 clients was 46 ms, at 5 it was 28; throughput was the same (benchmarks/crowd.py, compare.py).
NICENESS = 5

# "module:function" to call with the model before anything is computed: how the fault tests make a worker fail.
HOOK = "EMBELLAMA_TEST_WORKER_HOOK"


def run(config: ServerConfig, canary: Tokens, shared: str, reader: Connection, writer: Connection) -> None:
    """Load the model, answer with the canary's row, then answer batches until told to stop.

    Args:
        shared: Path of the `SharedWeights` of this model's workers; "" if there are none.
    """
    os.nice(NICENESS)
    signals.ignore()
    threading.Thread(target=_exit_with_front, name="front-watch", daemon=True).start()
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    # When ggml aborts it looks for a debugger and forks it for a backtrace, which can hang the dying process.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    from embellama.gguf.loading import load_weights
    from embellama.model import EmbeddingModel  # llama.cpp reads the environment when it loads

    replies = ReplyWriter(writer)
    try:
        with _opened(shared) as memory:
            try:
                weights = load_weights(config, memory)
            except ConfigError as error:  # the file is no longer the one that the front chose for
                logger.warning("llama.cpp computes the model: %s", error)
                weights = load_weights(msgspec.structs.replace(config, compute="llama"))
            model = EmbeddingModel(config, weights)
        if hook := os.environ.get(HOOK):
            module, _, function = hook.partition(":")
            getattr(importlib.import_module(module), function)(model)
        replies.send_rows(STARTED, model.encode(Batch.join([canary])))
    except Exception as error:
        reason = error.reason if isinstance(error, ModelLoadError) else str(error) or repr(error)
        replies.send_error(STARTED, reason)
        return
    tasks = TaskReader(reader)
    while task := tasks.next():
        try:
            rows = model.encode(task.batch, task.n_threads)
        except Exception as error:  # whatever it is, the front must hear of it
            reason = error.reason if isinstance(error, EmbeddingFailed) else str(error)
            replies.send_error(task.id, reason or repr(error))
        else:
            replies.send_rows(task.id, rows)
    model.close()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int | None]:
    """Open the file at `path`; None stands for one that cannot be opened."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


def _exit_with_front() -> None:
    front = multiprocessing.parent_process()
    assert front is not None
    front.join()
    os._exit(1)
