"""`RemotePool`: other servers in the place of a pool; a `Backend`.

Job.tokens ──► RemotePool.submit ──► RemoteClient.rows ──► servers ──► a future of rows ──► Job.finish

Token ids go out and rows come back, so what the ids mean must be the same on both sides: `RemoteModel` sees to that.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from embellama.backend import ANYONE, Caller, PoolState, Progress, Times
from embellama.batch import RowKind, Rows, Tokens
from embellama.errors import InputError, Unavailable
from embellama.remote.client import RemoteClient


class RemotePool:
    """Computes rows with embellama's servers, which know callers by the client's key: `caller` makes no difference."""

    def __init__(self, client: RemoteClient, n_servers: int):
        """Compute with the servers of a client, so many of them; the pool's end is the client's."""
        self._client, self._n_servers = client, n_servers
        self._lock = threading.Lock()
        self._open: set[Future[Rows]] = set()
        self._closed = False

    @property
    def state(self) -> PoolState:
        """The current state, as far as it is known here: what waits at the servers is theirs to tell."""
        n_ready = 0 if self._closed else self._n_servers
        return PoolState(
            status="unavailable" if self._closed else "ok",
            n_workers=self._n_servers,
            n_ready=n_ready,
            n_open=len(self._open),
            n_waiting=0,
            waiting_tokens=0,
        )

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise `Unavailable` if it is closed; there is always room, as requests wait for their turn here."""
        if self._closed:
            raise Unavailable("the servers' client is closed")

    def submit(
        self,
        tokens: Sequence[Tokens],
        *,
        kind: RowKind = RowKind.TEXT,
        deadline: float = float("inf"),
        times: Times | None = None,
        progress: Progress | None = None,
        caller: Caller = ANYONE,
    ) -> "Future[Rows]":
        """Compute the rows of texts, as `Backend.submit` says.

        Raises:
            InputError: Rows of tokens are wanted, which servers do not give.
            Unavailable: It is closed.
        """
        self.check_room(caller)
        if kind == RowKind.TOKEN:
            raise InputError("vectors of tokens are wanted; servers give none")
        future = self._client.rows(
            tokens, scaled=kind == RowKind.TEXT, deadline=deadline, times=times or Times(), progress=progress
        )
        with self._lock:
            self._open.add(future)
        future.add_done_callback(self._ended)
        return future

    def close(self) -> None:
        """End every open request, and hang up."""
        self._closed = True
        self._client.close()

    def _ended(self, future: "Future[Rows]") -> None:
        with self._lock:
            self._open.discard(future)
