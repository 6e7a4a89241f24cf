"""Signals and processes that are started here: those they ignore, and how they ended.

with blocked(): start ──► ignore(), in the process ──► it ends when it is told to, or is killed ──► how_it_ended
"""

import contextlib
import signal
from collections.abc import Iterator

# Signals of a terminal or a service manager. They may reach every process of a group, of which the first decides.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals, so that none reaches a process that is started in the block before it calls `ignore`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore the signals in this process, on its main thread."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)


def how_it_ended(status: int) -> str:
    """Say how a process ended, given its exit status: negative for the number of a signal."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:  # Python names no real-time signals but the first and the last
        return f"ended by signal {-status}"
