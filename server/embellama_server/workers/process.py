"""Start, stop and kill one worker process, and measure its memory.

Supervisor ── send, stop, kill ──► WorkerProcess ── Channel ══► worker.run
           ◄── on_reply, on_close ──

A supervisor knows only the `Process` interface, so that tests can give it simulated processes.
"""

import asyncio
import logging
import multiprocessing
from collections.abc import Callable
from typing import Protocol

import psutil

from embellama.batch import Batch, Tokens
from embellama.kernels import SharedWeights
from embellama.machine import signals
from embellama_server.config import ServerConfig
from embellama_server.workers import worker
from embellama_server.workers.channel import Channel, WorkerReply

logger = logging.getLogger("embellama.process")

# After being told to stop, a worker has this long for the batch it is in.
STOP_S = 5.0


class Process(Protocol):
    """The interface of a worker process that was started."""

    @property
    def pid(self) -> int | None:
        """Its process id."""

    @property
    def memory(self) -> int:
        """Its resident memory in bytes, on Linux without the pages of files it maps; 0 once it is gone."""

    @property
    def resident(self) -> int:
        """Its resident memory in bytes; 0 once it is gone."""

    def send(self, id: int, n_threads: int, batch: Batch) -> None:
        """Queue a batch for it."""

    def stop(self) -> None:
        """Ask it to exit once it has computed the batches it holds."""

    def kill(self) -> None:
        """End it now."""

    async def end(self) -> None:
        """Wait until it is gone; if it does not go within `STOP_S`, kill it."""


Launch = Callable[[SharedWeights, int, Callable[[WorkerReply], None], Callable[[], None]], Process]
"""Starts a worker with these weights and this number in the running event loop. Its replies go to the first function;
the second is called once, when it is gone. Raises OSError if no process can be started."""


class WorkerProcess:
    """A real worker process, which runs `worker.run`."""

    def __init__(
        self,
        config: ServerConfig,
        canary: Tokens,
        shared: SharedWeights,
        number: int,
        on_reply: Callable[[WorkerReply], None],
        on_close: Callable[[], None],
    ):
        """Start the process, in the running event loop. Raises OSError if none can be started."""
        self._shared = shared  # else its path could lead to another file by the time the process opens it
        context = multiprocessing.get_context("spawn")
        self._channel = Channel(context)
        self._process = context.Process(
            target=worker.run, args=(config, canary, shared.path, *self._channel.worker_end), name=f"worker-{number}"
        )
        # Not in a thread: it takes a few ms, and nothing can come between it and the next lines.
        with signals.blocked():
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._channel.open(on_reply, on_close)

    @property
    def memory(self) -> int:
        n_resident, n_shared = resident_and_shared(self.pid)
        return n_resident - n_shared

    @property
    def resident(self) -> int:
        return resident_and_shared(self.pid)[0]

    def send(self, id: int, n_threads: int, batch: Batch) -> None:
        self._channel.send(id, n_threads, batch)

    def stop(self) -> None:
        self._channel.stop()

    def kill(self) -> None:
        self._process.kill()

    async def end(self) -> None:
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        if code:  # the kernel's SIGKILL when memory is short, and SIGABRT or SIGSEGV, are different things to look for
            logger.info("worker process %d %s", self.pid, signals.how_it_ended(code))
        self._process.close()
        del self._shared


def resident_and_shared(pid: int) -> tuple[int, int]:
    """Return a process's resident memory, and how much of that is pages of files, in bytes; zeros once it is gone.

    Only Linux tells how much is of files; elsewhere none is.
    """
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0, 0
    return info.rss, getattr(info, "shared", 0)
