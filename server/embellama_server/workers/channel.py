"""Queue batches to one worker process and read its rows back.

      event loop process                  |        worker process
                                          |
  Channel.send(batch) ═══ pipe ═══════════|══► TaskReader ──► model
                                          |               │
  on_reply(reply) ◄── loop.add_reader ◄═══|═══ pipe ◄── ReplyWriter
  on_close()      ◄── end of file         |

A worker has two pipes of its own. So the dispatcher knows what a dead worker held; no lock is shared with a process
that may be killed while it holds it; and the end of the pipe comes after the last reply, so a death is never seen
before what the worker still had to say.

The front reads and writes without a thread: a hand-over between threads costs more than the read. It never waits for a
worker: what a pipe does not take at once is written when the worker has read on. Replies take framing of their own,
because multiprocessing's cannot go on where a non-blocking read stopped.
"""

import asyncio
import contextlib
import fcntl
import os
import pickle
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Batch

# Ids of batches are positive. STARTED is the id of a worker's first reply: its canary's row, or why it could not start.
STARTED = 0
# The id of the canary that a ready worker, idle or not, is asked to compute again from time to time.
CANARY = -1

_TASK_HEADER = struct.Struct("<q")  # bytes of the pickled task
_HEADER = struct.Struct("<qiiq")  # batch id, rows (-1: the body is an error's text), dim, bytes of body

# Linux's pipes start at 64 KiB. This much holds most batches and their rows, so that they are written at once; what
# does not fit takes the event loop a turn for each such piece.
_PIPE_BYTES = 1 << 20


class Task(NamedTuple):
    """A batch on its way to a worker, as plain bytes: they pickle in 2 µs."""

    id: int
    n_threads: int
    tokens: bytes  # (n_tokens,) int32
    lengths: bytes  # (n_texts,) int32
    kinds: bytes | None  # (n_texts,) uint8; None as in Batch

    @property
    def batch(self) -> Batch:
        kinds = None if self.kinds is None else np.frombuffer(self.kinds, np.uint8)
        return Batch(np.frombuffer(self.tokens, np.int32), np.frombuffer(self.lengths, np.int32), kinds)


class WorkerReply(NamedTuple):
    """A worker's reply to one batch: its rows, or why it could not compute them."""

    id: int
    rows: NDArray[np.float32] | None  # (sum of the batch's n_rows, dim); None for an error
    error: str


class Channel:
    """The server's ends of one worker's pipes."""

    def __init__(self, context: SpawnContext) -> None:
        self._task_reader, self._tasks = context.Pipe(duplex=False)
        self._reader, self._writer = context.Pipe(duplex=False)
        _grow(self._tasks.fileno())
        _grow(self._writer.fileno())

    @property
    def worker_end(self) -> tuple[Connection, Connection]:
        """The worker's ends of the pipes: pass them to its process as arguments, then call `open`."""
        return self._task_reader, self._writer

    def open(self, on_reply: Callable[[WorkerReply], None], on_close: Callable[[], None]) -> None:
        """Start to read replies, in the running event loop; `on_close` comes once, when the worker is gone."""
        # The worker's copies are then the only ones, and the pipes end with the worker.
        self._task_reader.close()
        self._writer.close()
        frames = _Frames(self._reader.fileno())
        loop = asyncio.get_running_loop()
        self._task_writer = _PatientWriter(self._tasks.fileno(), loop)

        def read() -> None:
            try:
                if reply := frames.next():  # more than one are rare, and the loop calls again
                    on_reply(reply)
            except EOFError:
                loop.remove_reader(self._reader.fileno())
                self.close()
                on_close()

        loop.add_reader(self._reader.fileno(), read)

    def send(self, id: int, n_threads: int, batch: Batch) -> None:
        """Queue a batch for the worker. If it dies before it answers, the batch is lost, and `on_close` is called."""
        kinds = None if batch.kinds is None else batch.kinds.tobytes()
        task = Task(id, n_threads, batch.tokens.tobytes(), batch.lengths.tobytes(), kinds)
        self._send(task)

    def stop(self) -> None:
        """Ask the worker to exit once it has computed the batches it holds."""
        self._send(None)

    def _send(self, task: Task | None) -> None:
        data = pickle.dumps(task)
        self._task_writer.write(_TASK_HEADER.pack(len(data)) + data)

    def close(self) -> None:
        """Close the server's ends; `open` does so itself when the worker is gone."""
        self._task_writer.stop()
        self._reader.close()
        self._tasks.close()


class _PatientWriter:
    """Writes to a pipe, and keeps what it does not take until it does."""

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop):
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = loop
        self._left = bytearray()
        self._gone = False

    def write(self, data: bytes) -> None:
        """Write all of `data` in the end, after what is left of before; nothing once the reader is gone."""
        waits = bool(self._left)
        self._left += data
        if not waits and self._write_on():
            self._loop.add_writer(self._fd, self._on_room)

    def stop(self) -> None:
        """Write no more: the pipe is about to be closed."""
        self._gone = True
        self._loop.remove_writer(self._fd)

    def _on_room(self) -> None:
        if not self._write_on():
            self._loop.remove_writer(self._fd)

    def _write_on(self) -> bool:
        """Write what the pipe takes; return whether something is left."""
        try:
            while self._left and not self._gone:
                n = os.write(self._fd, self._left)
                del self._left[:n]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # the end of the other pipe tells of it
            self._gone = True
        self._left.clear()
        return False


class TaskReader:
    """Reads tasks from the worker's end of the pipe."""

    def __init__(self, reader: Connection):
        self._reader = reader
        self._file = open(reader.fileno(), "rb", closefd=False)  # noqa: SIM115 - open as long as this is

    def next(self) -> Task | None:
        """Wait for the next task; None when the worker is to stop, or the server is gone."""
        header = self._file.read(_TASK_HEADER.size)
        if len(header) < _TASK_HEADER.size:
            return None
        (n_bytes,) = _TASK_HEADER.unpack(header)
        data = self._file.read(n_bytes)
        task: Task | None = pickle.loads(data) if len(data) == n_bytes else None
        return task


class _Frames:
    """Reads whole replies from a pipe, from which one read may give any part of them."""

    def __init__(self, fd: int):
        os.set_blocking(fd, False)
        self._fd = fd
        self._header = bytearray(_HEADER.size)
        self._body: bytearray | None = None
        self._n_read = 0

    def next(self) -> WorkerReply | None:
        """Return the next whole reply, or None until there is more to read. Raises EOFError at the end."""
        if self._body is None:
            if not self._fill(self._header):
                return None
            self._body = bytearray(_HEADER.unpack(self._header)[3])
        if not self._fill(self._body):
            return None
        (id, n_rows, dim, _), body = _HEADER.unpack(self._header), self._body
        self._body = None
        if n_rows < 0:
            return WorkerReply(id, None, body.decode())
        return WorkerReply(id, np.frombuffer(body, np.float32).reshape(n_rows, dim), "")

    def _fill(self, target: bytearray) -> bool:
        while self._n_read < len(target):
            try:
                n = os.readv(self._fd, [memoryview(target)[self._n_read :]])
            except BlockingIOError:
                return False
            if n == 0:
                raise EOFError
            self._n_read += n
        self._n_read = 0
        return True


class ReplyWriter:
    """Writes replies to the worker's end of the pipe."""

    def __init__(self, writer: Connection):
        self._writer = writer

    def send_rows(self, id: int, rows: NDArray[np.float32]) -> None:
        """Answer batch `id` with ``(n_rows, dim) float32``."""
        n_rows, dim = rows.shape
        self._send(_HEADER.pack(id, n_rows, dim, rows.nbytes), np.ascontiguousarray(rows).data.cast("B"))

    def send_error(self, id: int, text: str) -> None:
        """Answer batch `id` with why it could not be computed."""
        body = text.encode("utf-8", "replace")
        self._send(_HEADER.pack(id, -1, 0, len(body)), memoryview(body))

    def _send(self, header: bytes, body: memoryview) -> None:
        fd = self._writer.fileno()
        n = os.writev(fd, [header, body]) - len(header)
        while n < len(body):
            n += os.write(fd, body[max(n, 0) :])


def _grow(fd: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        # Refused once this user has used up its share of pipe memory; the default size still works.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
