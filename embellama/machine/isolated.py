"""Run functions in a separate process, because they may crash it or must leave no memory behind.

IsolatedProcess(make, …) ══► a new process: target = make(…)
call(function, …) ══► function(target, …) ──► what it returns, or the error it raises
                 ◄══
a process that ends, or is silent for too long ──► ModelError
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from embellama.errors import EmbellamaError, ModelError

Target = TypeVar("Target")
Result = TypeVar("Result")
Args = ParamSpec("Args")

# A call takes seconds; loading a large file from a slow disk takes longer.
PATIENCE_S = 120.0


class IsolatedProcess(Generic[Target]):
    """An object made in a separate process, and functions called on it there.

    For use by one thread. The process ends with the `with` block, or when the one that started it ends.
    """

    def __init__(self, make: Callable[..., Target], *args: Any):
        """Start the process and call ``make(*args)`` there. Functions and arguments are pickled.

        Raises:
            EmbellamaError: As `make` raises it.
            ModelError: The process ended or hangs, or `make` raised something else.
            OSError: No process can be started.
        """
        context = multiprocessing.get_context("spawn")
        self._end, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, make, *args), daemon=True)
        try:
            self._process.start()
        except BaseException:
            self._end.close()
            raise
        finally:
            other_end.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(
        self, function: Callable[Concatenate[Target, Args], Result], *args: Args.args, **options: Args.kwargs
    ) -> Result:
        """Call ``function(target, …)`` there, on what `make` returned. Raises as `__init__` does."""
        try:
            self._end.send((function, args, options))
        except OSError:
            raise self._death() from None
        return self._answer()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._end.close()

    def __enter__(self) -> "IsolatedProcess[Target]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            if not self._end.poll(PATIENCE_S):
                raise ModelError(f"its process gave no answer in {PATIENCE_S:.0f} s")
            result, error = self._end.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if error:
            raise error
        return result

    def _death(self) -> ModelError:
        self._process.join()
        status = self._process.exitcode or 0
        how = f"by signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"with status {status}"
        return ModelError(f"its process ended {how}")


def _serve(end: Connection, make: Callable[..., Any], *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the process that started this one decides
    threading.Thread(target=_exit_with_starter, daemon=True).start()
    os.environ["GGML_NO_BACKTRACE"] = "1"  # as in the server's workers
    target, error = _attempt(make, *args)
    end.send((None, error))
    with contextlib.suppress(EOFError):
        while not error:
            function, values, options = end.recv()
            end.send(_attempt(function, target, *values, **options))


def _attempt(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, EmbellamaError | None]:
    try:
        return function(*args, **options), None
    except EmbellamaError as error:
        return None, error
    except Exception as error:
        return None, ModelError(f"{type(error).__name__}: {error}")


def _exit_with_starter() -> None:
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os._exit(1)
