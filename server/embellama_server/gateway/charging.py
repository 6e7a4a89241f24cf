"""`ChargingBackend`: a back end around a back end, which charges callers for the tokens that it is to compute.

submit ──► room? ──► Account.charge_tokens: 429 ──► the back end inside
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from embellama.backend import ANYONE, Backend, Caller, PoolState, Progress, Times
from embellama.batch import RowKind, Rows, Tokens
from embellama.errors import Overloaded
from embellama_server.gateway.keyring import Keyring
from embellama_server.gateway.meters import Account
from embellama_server.state import Cost

Result = TypeVar("Result")

RowsFuture = asyncio.Future[Rows]


class ChargingBackend:
    """A `Backend` that has callers pay; used on the event loop.

    Tokens are charged once they are known exactly, and before they are queued; nothing is given back. What is refused
    for lack of room after it was paid stays paid when the same request comes again, as a streamed one does.
    """

    def __init__(self, inside: Backend[RowsFuture], cost: Cost, keyring: Keyring):
        self._inside, self._cost, self._keyring = inside, cost, keyring
        self._paid: WeakKeyDictionary[Times, int] = WeakKeyDictionary()

    @property
    def state(self) -> PoolState:
        """The state of the back end inside."""
        return self._inside.state

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise as the back end inside does."""
        self._inside.check_room(caller)

    def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        kind: RowKind = RowKind.TEXT,
        deadline: float = float("inf"),
        times: Times | None = None,
        progress: Progress | None = None,
        caller: Caller = ANYONE,
    ) -> RowsFuture:
        """Charge the caller, then compute, as `Backend.submit` says; this or the future may fail with `RateLimited`."""
        times = times or Times()
        account = self._keyring.named(caller.name)

        def submit() -> RowsFuture:
            return self._inside.submit(
                tokens, kind=kind, deadline=deadline, times=times, progress=progress, caller=caller
            )

        if not account.tokens:
            return submit()
        self._inside.check_room(caller)
        cost = self._cost(sum(map(len, tokens)))

        async def paid() -> RowsFuture:
            await self._charge(account, cost, times)
            try:
                return submit()
            except Overloaded:
                self._paid[times] = self._paid.get(times, 0) + cost
                raise

        async def rows() -> Rows:
            return await (await paid())

        return asyncio.ensure_future(rows()) if self._keyring.may_wait else run_at_once(paid())

    async def _charge(self, account: Account, n_tokens: int, times: Times) -> None:
        paid = self._paid.pop(times, 0)
        if paid > n_tokens:
            self._paid[times] = paid - n_tokens
        elif paid < n_tokens:
            await account.charge_tokens(n_tokens - paid)

    def close(self) -> Awaitable[None] | None:
        """Close the back end inside."""
        return self._inside.close()


def run_at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that waits for nothing: a task would make a request 30 µs dearer."""
    try:
        work.send(None)
    except StopIteration as ended:
        return cast(Result, ended.value)
    raise AssertionError("it waits")
