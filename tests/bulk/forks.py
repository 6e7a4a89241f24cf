"""Run `embellama bulk` in forks of a process that has imported all of it: real runs, which start at once.

Forks.start ── Request ──► serve: fork ──► the command, in a process that may be killed, limited or given a fault
Fork.wait ◄── its pid, and how it ended ──╯
"""

import io
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.bulk.faults import Fault, arm, count_reads, count_rows
from tests.conftest import ROOT


class Request(msgspec.Struct, frozen=True):
    """A run.

    Attributes:
        arguments: Of the `embellama` command.
        stdin: File that it reads as standard input.
        output: Files for standard output and standard error begin with this.
        max_file_bytes: Files can have no more bytes; 0 for any number.
        fault: What kills it, and when.
        counts: File to which each part's number of rows is added once they are computed.
        reads: File to which the bytes of each read of an input are added.
    """

    arguments: list[str]
    output: str
    stdin: str = os.devnull
    max_file_bytes: int = 0
    fault: Fault | None = None
    counts: str = ""
    reads: str = ""


class Ended(msgspec.Struct, frozen=True):
    """How a run ended.

    Attributes:
        returncode: As in `subprocess`.
        stdout: What it printed.
        stderr: What it said.
        max_rss: Most memory that it held, in bytes.
    """

    returncode: int
    stdout: str = ""
    stderr: str = ""
    max_rss: int = 0


class Fork:
    """A run.

    Attributes:
        ended: How it ended, once somebody has waited for it.
    """

    def __init__(self, pid: int, stream: io.BufferedRWPair, output: str):
        self.pid, self._stream, self._output = pid, stream, output
        self.ended: Ended | None = None

    def wait(self) -> Ended:
        """Wait until it has ended."""
        if self.ended is None:
            self._stream.write(b"wait\n")
            self._stream.flush()
            ended = msgspec.json.decode(self._stream.readline(), type=Ended)
            stdout, stderr = (Path(f"{self._output}.{name}").read_text() for name in ("out", "err"))
            self.ended = msgspec.structs.replace(ended, stdout=stdout, stderr=stderr)
        return self.ended

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal. Its pid is its own until `wait`: nobody waits for it before."""
        os.kill(self.pid, how)


class Forks:
    """A process to fork, which runs one command at a time."""

    def __init__(self, stream: io.BufferedRWPair, folder: Path):
        self._stream, self._folder = stream, folder
        self._last: Fork | None = None

    def start(self, *arguments: str | Path, **options: object) -> Fork:
        """Start `embellama` with arguments; `options` are fields of `Request`."""
        if self._last and not self._last.ended:  # its test has failed
            self._last.kill()
            self._last.wait()
        output = str(self._folder / "run")
        request = msgspec.convert({"arguments": [*map(str, arguments)], "output": output, **options}, Request)
        self._stream.write(msgspec.json.encode(request) + b"\n")
        self._stream.flush()
        self._last = Fork(int(self._stream.readline()), self._stream, output)
        return self._last


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """Start a process to fork; it is gone at the end."""
    ours, its = socket.socketpair()
    program = f"from tests.bulk.forks import serve; serve({its.fileno()})"
    with ours, its, subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, pass_fds=[its.fileno()]) as process:
        its.close()
        with ours.makefile("rwb") as stream:
            yield Forks(stream, folder)
        ours.shutdown(socket.SHUT_RDWR)
        assert process.wait(30) == 0


def serve(descriptor: int) -> None:
    """Fork for each request until there are no more."""
    import charset_normalizer  # noqa: F401
    import pypdf  # noqa: F401

    from embellama.cli.main import main

    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as stream:
        while line := stream.readline():
            request = msgspec.json.decode(line, type=Request)
            pid = os.fork()
            if pid == 0:
                _prepare(request)
                main(request.arguments, prog_name="embellama")
            stream.write(b"%d\n" % pid)
            stream.flush()
            stream.readline()  # the word to wait for it
            stream.write(_end_of(pid))
            stream.flush()


def _end_of(pid: int) -> bytes:
    _, status, usage = os.wait4(pid, 0)
    ended = Ended(os.waitstatus_to_exitcode(status), max_rss=usage.ru_maxrss * 1024)
    return msgspec.json.encode(ended) + b"\n"


def _prepare(request: Request) -> None:
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(request.stdin, os.O_RDONLY), 0)
    os.dup2(os.open(f"{request.output}.out", writing), 1)
    os.dup2(os.open(f"{request.output}.err", writing), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request.max_file_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.max_file_bytes, request.max_file_bytes))
    if request.counts:
        count_rows(request.counts)
    if request.reads:
        count_reads(request.reads)
    if request.fault:
        arm(request.fault)
