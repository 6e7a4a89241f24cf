"""`Shared`: what a process makes when it is first used, shares from then on, and closes at its exit.

get(key) ──► made already? ──► that
                 │ no
                 ▼
              make(key), once, though many threads ask

A fork has none of the threads of engines and clients, so it makes its own; what it was born with stays untouched.
"""

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from embellama.errors import Unavailable


class Closable(Protocol):
    """Something to be closed at the end."""

    def close(self) -> None:
        """Free it."""


Key = TypeVar("Key", bound=Hashable)
Thing = TypeVar("Thing", bound=Closable)


class Shared(Generic[Key, Thing]):
    """Things by their keys, for use from any thread and in forks.

    Attributes:
        in_fork: Whether this process is a fork of the one that made this.
    """

    def __init__(self, make: Callable[[Key], Thing]):
        """Prepare to make things with `make`."""
        self._make = make
        self._things: dict[Key, Thing] = {}
        self._inherited: list[dict[Key, Thing]] = []
        self._lock = threading.Lock()  # held while a thing is made
        self._closed = False
        self.in_fork = False
        _all.add(self)

    def get(self, key: Key) -> Thing:
        """Return the thing of a key, made now if this is its first use.

        Raises:
            Unavailable: The process is ending. And whatever making it raises; the next call tries again.
        """
        if (thing := self._things.get(key)) is not None:
            return thing
        with self._lock:
            if self._closed:
                raise Unavailable("Python is ending")
            if key not in self._things:
                self._things[key] = self._make(key)
            return self._things[key]

    def close(self) -> None:
        """Close everything, for good."""
        with self._lock:
            self._closed = True
            things = [*self._things.values()]
            self._things.clear()
        for thing in things:
            thing.close()

    def after_fork(self) -> None:
        """Begin anew. What was inherited is kept: to free it is not the fork's business."""
        self.in_fork = True
        self._inherited.append(self._things)
        self._things = {}
        self._lock = threading.Lock()  # another thread of the parent may have held it


_all: "weakref.WeakSet[Shared[Any, Any]]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for shared in _all:
        shared.close()


def _after_fork() -> None:
    for shared in _all:
        shared.after_fork()


os.register_at_fork(after_in_child=_after_fork)
