"""SIGHUP, which has the workers replaced: from the first import to the end of the process it never ends the server.

import ──► noted ──► on_hangup: given to the running server ──► ignore: the server stops

Import of this module catches it, before the slower imports of the command: by default the signal ends the process.
It has SIGINT end the process without a traceback, too, until `imported` is called.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

_noted = False
_replace: Callable[[], object] | None = None


def on_hangup(replace: Callable[[], object]) -> None:
    """Call a function for each SIGHUP from now on, and at once if one has come."""
    global _replace
    _replace = replace
    if _noted:
        replace()


def imported() -> None:
    """Let SIGINT raise `KeyboardInterrupt` again: from now on there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """Ignore the signal from now on; a function would be dropped before the process ends."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _note(_: int, __: FrameType | None) -> None:
    global _noted
    _noted = True
    if _replace:
        _replace()


def _end(_: int, __: FrameType | None) -> None:
    os._exit(128 + signal.SIGINT)


with contextlib.suppress(ValueError):  # not in the main thread, where no server runs
    signal.signal(signal.SIGHUP, _note)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _end)
