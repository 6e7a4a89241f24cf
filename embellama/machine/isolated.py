"""Run functions in a separate process, because they may crash it, never end, or leave memory behind.

IsolatedProcess(make, …) ══► a new process: target = make(…)
call(function, …) ══► function(target, …) ──► what it returns, or the error it raises
                 ◄══
a process that ends, or is silent for too long ──► ProcessFailed
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from embellama.deadline import POLL_S, check_deadline
from embellama.errors import EmbellamaError, ModelError
from embellama.machine import signals

Target = TypeVar("Target")
Result = TypeVar("Result")
Args = ParamSpec("Args")

# A call takes seconds; loading a large file from a slow disk takes longer.
PATIENCE_S = 120.0

# Not by multiprocessing, which would run the caller's main module once more.
PROGRAM = "from embellama.machine import isolated; isolated.serve()"


class ProcessFailed(ModelError):
    """The process ended, or was silent for too long."""


class IsolatedProcess(Generic[Target]):
    """An object made in a separate process, and functions called on it there.

    For use by one thread at a time. The process ends with the `with` block, or when the one that started it ends.

    Attributes:
        patience_s: Seconds an answer may take.
    """

    def __init__(self, make: Callable[..., Target], *args: Any):
        """Start the process and call ``make(*args)`` there. Functions and arguments are pickled.

        Raises:
            EmbellamaError: As `make` raises it.
            ProcessFailed: The process ended or hangs.
            DeadlineExceeded: The deadline of this thread's work has passed (`embellama.deadline`).
            ModelError: `make` raised something else.
            OSError: No process can be started.
        """
        self.patience_s = PATIENCE_S
        self._end, other_end = Pipe()
        try:
            with signals.blocked():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(other_end.fileno())],
                    stdin=subprocess.PIPE,  # its end tells the process that this one has ended
                    stdout=subprocess.DEVNULL,
                    pass_fds=[other_end.fileno()],
                    env=python_environment(),
                )
            _started.add(self)
        except BaseException:
            self._end.close()
            raise
        finally:
            other_end.close()
        try:
            self._ask(make, args, {})
        except BaseException:
            self.close()
            raise

    def call(
        self, function: Callable[Concatenate[Target, Args], Result], *args: Args.args, **options: Args.kwargs
    ) -> Result:
        """Call ``function(target, …)`` there, on what `make` returned. Raises as `__init__` does."""
        return self._ask(function, args, options)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._end.close()

    def let_go(self) -> None:
        """Close a fork's ends, without which the process would outlive the one that started it."""
        self._end.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.returncode = 0  # it is not the fork's to wait for

    def __enter__(self) -> "IsolatedProcess[Target]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            self._end.send((function, args, options))
            given_up_at = time.monotonic() + self.patience_s
            while not self._end.poll(min(POLL_S, self.patience_s)):
                check_deadline()
                if time.monotonic() > given_up_at:
                    raise ProcessFailed(f"its process gave no answer in {self.patience_s:.1f} s")
            result, error = self._end.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if error:
            raise error
        return result

    def _death(self) -> ProcessFailed:
        return ProcessFailed(f"its process {signals.how_it_ended(self._process.wait())}")


def python_environment() -> dict[str, str]:
    """Return the environment of a Python that imports what this one does, and nothing from the current folder."""
    path = os.pathsep.join(filter(None, sys.path))
    # As in the server's workers: a dying ggml must not start a debugger.
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "GGML_NO_BACKTRACE": "1"}


_started: weakref.WeakSet[IsolatedProcess[Any]] = weakref.WeakSet()


def _let_all_go() -> None:
    for process in list(_started):
        process.let_go()
    _started.clear()


os.register_at_fork(after_in_child=_let_all_go)


def serve() -> None:
    """Answer calls until the process that started this one ends; the last argument is the pipe's descriptor."""
    signals.ignore()
    threading.Thread(target=_exit_with_starter, daemon=True).start()
    end = Connection(int(sys.argv[-1]))
    with contextlib.suppress(EOFError):
        make, args, _ = end.recv()
        target, error = _attempt(make, *args)
        end.send((None, error))
        while not error:
            function, args, options = end.recv()
            end.send(_attempt(function, target, *args, **options))


def _attempt(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, EmbellamaError | None]:
    try:
        return function(*args, **options), None
    except EmbellamaError as error:
        return None, error
    except Exception as error:
        return None, ModelError(f"{type(error).__name__}: {error}")


def _exit_with_starter() -> None:
    os.read(sys.stdin.fileno(), 1)  # not by `sys.stdin`, whose lock the end of Python would wait for
    os._exit(1)
