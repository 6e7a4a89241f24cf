"""The deadline of the work that a thread is doing, for code far below the caller who set it.

a request's thread ── working_until ──► … ──► check_deadline, between steps that take long, or `holding` a lock
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from embellama.errors import DeadlineExceeded

# How often a thread that waits looks whether its deadline has passed. Smaller costs more; larger, and it is told later.
POLL_S = 0.1


class Deadline:
    """A time by which work is to be done.

    Attributes:
        at: The time, on `time.monotonic`'s clock. Another thread may set it to 0: nobody waits for the work any more.
        timeout_ms: What the caller had in all, for the error.
    """

    def __init__(self, at: float, timeout_ms: int):
        self.at = at
        self.timeout_ms = timeout_ms


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextlib.contextmanager
def working_until(deadline: Deadline) -> Iterator[None]:
    """Let what this thread does in the block see `deadline`."""
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


def check_deadline() -> None:
    """Raise `DeadlineExceeded` if this thread's work has a deadline, and it has passed."""
    deadline = _current.get()
    if deadline and time.monotonic() > deadline.at:
        raise DeadlineExceeded(deadline.timeout_ms)


@contextlib.contextmanager
def holding(turns: threading.Semaphore) -> Iterator[None]:
    """Hold one of the turns of a semaphore in the block; raise `DeadlineExceeded` if none comes in time."""
    while not turns.acquire(timeout=POLL_S):
        check_deadline()
    try:
        yield
    finally:
        turns.release()
