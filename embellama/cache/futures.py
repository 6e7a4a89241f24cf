"""The two kinds of future that a cache hands out: of threads, and of an event loop.

What differs between the library and the server is in here: how a future is made, and how one waits for a slow layer.
"""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from embellama.batch import Rows
from embellama.cache.layers import Lookup
from embellama.ledger import SettableFuture


class CacheableFuture(SettableFuture, Protocol):
    """The methods that a cache needs of `concurrent.futures.Future` and `asyncio.Future`."""

    def result(self) -> Rows: ...

    def exception(self) -> BaseException | None: ...

    def cancelled(self) -> bool: ...

    def cancel(self) -> bool: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


RowsFuture = TypeVar("RowsFuture", bound=CacheableFuture)
MadeFuture = TypeVar("MadeFuture", bound=CacheableFuture, covariant=True)


class Futures(Protocol[MadeFuture]):
    """Makes futures, and waits for slow layers."""

    def new(self) -> MadeFuture:
        """Make a future of rows."""

    def wait(self, lookup: Lookup, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` once all was looked up, or the time is over: before this returns, or later on the same thread."""


class ThreadFutures:
    """Futures of threads: who asks waits for the slow layers himself."""

    def new(self) -> "concurrent.futures.Future[Rows]":
        """Make a future of rows."""
        return concurrent.futures.Future()

    def wait(self, lookup: Lookup, seconds: float, then: Callable[[], None]) -> None:
        """Wait, and call `then`."""
        concurrent.futures.wait([lookup.done], seconds)
        lookup.done.cancel()
        then()


class LoopFutures:
    """Futures of the running event loop, which goes on while the slow layers are asked."""

    def new(self) -> "asyncio.Future[Rows]":
        """Make a future of rows."""
        return asyncio.get_running_loop().create_future()

    def wait(self, lookup: Lookup, seconds: float, then: Callable[[], None]) -> None:
        """Have the event loop call `then`."""
        loop = asyncio.get_running_loop()
        called = False

        def once() -> None:
            nonlocal called
            if not called:
                called = True
                timer.cancel()
                lookup.done.cancel()
                then()

        timer = loop.call_later(seconds, once)
        lookup.done.add_done_callback(functools.partial(_call_on, loop, once))


def _call_on(loop: asyncio.AbstractEventLoop, call: Callable[[], None], _: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
