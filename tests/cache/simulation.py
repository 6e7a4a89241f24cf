"""A back end under a test's control, and caches around it.

The rows of a text are made of its first token id, so every row says whose it is.
"""

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embellama.backend import ANYONE, Caller, PoolState
from embellama.batch import RowKind, Rows, Tokens
from embellama.cache.backend import CachedBackend
from embellama.cache.futures import Futures, ThreadFutures
from embellama.cache.key import RowKeys
from embellama.cache.layers import SlowLayers
from embellama.cache.memory import MemoryLayer
from embellama.errors import DeadlineExceeded, EmbeddingFailed, Overloaded, Unavailable

DIM = 4
FULL_BATCH = 8  # tokens


def text(id: int, n_tokens: int = 2) -> Tokens:
    """Make a text that begins with `id`."""
    return np.array([id, *range(1, n_tokens)], np.int32)


def rows_of(tokens: Sequence[Tokens], kind: RowKind = RowKind.TEXT) -> Rows:
    """Return the rows that texts have."""
    each = [
        np.full((len(text) if kind == RowKind.TOKEN else 1, DIM), 10 * text[0] + kind, np.float32) for text in tokens
    ]
    return np.concatenate([np.empty((0, DIM), np.float32), *each])


class Request:
    """What the back end inside was asked.

    Attributes:
        tokens: The texts.
        future: Of their rows.
    """

    def __init__(self, tokens: Sequence[Tokens], future: Any, options: dict[str, Any]):
        self.tokens, self.future = tokens, future
        self.deadline: float = options["deadline"]
        self._kind: RowKind = options["kind"]
        self._progress = options["progress"]

    def compute(self) -> None:
        """Answer with the right rows."""
        if not self.future.cancelled():
            if self._progress:
                self._progress(len(self.tokens), len(self.tokens))
            self.future.set_result(rows_of(self.tokens, self._kind))

    def fail(self, position: int) -> None:
        """Fail by one text."""
        self._end(EmbeddingFailed(position, "poison"))

    def expire(self) -> None:
        """Fail because the deadline has passed."""
        self._end(DeadlineExceeded(1))

    def _end(self, error: Exception) -> None:
        if not self.future.cancelled():
            self.future.set_exception(error)


class Inside:
    """A back end that computes what and when a test says."""

    def __init__(self, futures: Futures[Any] | None = None):
        self._futures: Futures[Any] = futures or ThreadFutures()
        self.requests: list[Request] = []
        self.full = self.closed = False
        self.on_submit: Callable[[], object] = lambda: None

    @property
    def state(self) -> PoolState:
        return PoolState(status="ok", n_workers=1, n_ready=1, n_open=len(self.open), n_waiting=0, waiting_tokens=0)

    @property
    def open(self) -> list[Request]:
        """The requests that are neither answered nor cancelled."""
        return [request for request in self.requests if not request.future.done()]

    def check_room(self, caller: Caller = ANYONE) -> None:
        if self.closed:
            raise Unavailable("closed")
        if self.full:
            raise Overloaded("full")

    def submit(self, tokens: Sequence[Tokens], **options: Any) -> Any:
        self.check_room()
        for position, ids in enumerate(tokens):
            if ids[0] < 0:
                raise EmbeddingFailed(position, "known to be poison")
        self.on_submit()
        self.requests.append(Request(tokens, self._futures.new(), options))
        return self.requests[-1].future

    def close(self) -> None:
        self.closed = True

    def compute_all(self) -> None:
        """Answer all that is open."""
        while self.open:
            self.open[0].compute()


class DictLayer:
    """A slow layer in a dictionary."""

    name = "dict"
    n_bytes: int | None = None
    n_evicted = 0
    trouble = ""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        return {key: self.entries[key] for key in keys if key in self.entries}

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        self.entries |= entries

    def close(self) -> None:
        pass


KEYS = RowKeys(b"the simulated model")


def cached(
    inside: Any,
    futures: Futures[Any] | None = None,
    *layers: DictLayer,
    max_bytes: int = 1_000_000,
    ttl_s: int = 0,
    keys: RowKeys = KEYS,
) -> CachedBackend[Any]:
    """Go around a back end."""
    slow = SlowLayers(layers) if layers else None
    return CachedBackend(
        inside,
        keys,
        MemoryLayer(max_bytes),
        slow,
        futures or ThreadFutures(),
        dim=DIM,
        full_batch=FULL_BATCH,
        ttl_s=ttl_s,
    )


def outcome(future: "concurrent.futures.Future[Rows]") -> Rows | Exception | None:
    """Return a future's rows or error; None for one that is open or was cancelled."""
    if not future.done() or future.cancelled():
        return None
    error = future.exception()
    return error if isinstance(error, Exception) else future.result()
