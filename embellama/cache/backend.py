"""`CachedBackend`: a back end around a back end, which computes no row that is known and none twice at once.

   submit ──► keys ──► memory ──► all known: the answer, at once
                         │ unknown
                         ▼
              rows that are being computed (`Flights`) ──► wait for them
                         │ others
                         ▼
              slow layers, `READ_S` at most for some texts (`SlowLayers`) ──► into memory
                         │ unknown
                         ▼
              the back end inside ──► memory, slow layers, and every request that waits for a row

The same for threads and for an event loop; what differs is in `futures.py`. A lock guards memory and flights; futures,
the back end inside and callers' code are called without it.
"""

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Generic

import msgspec
import numpy as np

from embellama.backend import ANYONE, Backend, Caller, PoolState, Progress, Times
from embellama.batch import RowKind, Rows, Tokens, row_starts
from embellama.cache.entry import MAX_ENTRY_BYTES, numbers, sealed
from embellama.cache.flights import Asked, Flight, Flights
from embellama.cache.futures import Futures, RowsFuture
from embellama.cache.key import RowKeys
from embellama.cache.layers import LOOKUP_TEXTS, READ_S, Lookup, SlowLayers, slow_layers, time_limit
from embellama.cache.memory import MemoryLayer
from embellama.config import EngineConfig
from embellama.errors import Overloaded
from embellama.gguf.weights import Weights
from embellama.ledger import ProgressReport

# Requests by which the share of those that were wholly known is averaged.
RECENT_REQUESTS = 32

# While the back end inside is full, a request is looked at if so many were wholly known lately, and one in
# `LOOKED_AT` in any case, to find out. Looking at all of them would have a flood read and tokenized in vain.
KNOWN_SHARE = 1 / 16
LOOKED_AT = 16

# Bytes of rows that are kept of one request to the back end inside; more would drive out all others.
MAX_KEPT_BYTES = 32 * 1024 * 1024


class CachedBackend(Generic[RowsFuture]):
    """A `Backend` that keeps the rows of another one."""

    def __init__(
        self,
        inside: Backend[RowsFuture],
        keys: RowKeys,
        memory: MemoryLayer,
        slow: SlowLayers | None,
        futures: Futures[RowsFuture],
        *,
        dim: int,
        full_batch: int,
        ttl_s: int = 0,
    ):
        """Go around `inside`.

        Args:
            inside: Computes what is unknown.
            keys: Makes the keys of the model's rows.
            memory: The first layer.
            slow: Those after it, if there are any.
            futures: Makes the futures of `inside`.
            dim: Length of a row.
            full_batch: Tokens in a full batch of `inside`.
            ttl_s: Seconds after which rows are computed again; 0 for never.
        """
        self._inside, self._keys, self._memory, self._slow, self._futures = inside, keys, memory, slow, futures
        self._dim, self._ttl_s = dim, ttl_s
        self._flights: Flights[RowsFuture] = Flights(full_batch)
        self._open: set[Asked[RowsFuture]] = set()
        self._lock = threading.Lock()  # guards memory, flights and what is asked of them
        self._known_share = 0.0
        self._n_refused = 0

    @property
    def state(self) -> PoolState:
        """The state of the back end inside, with the layers', and the requests that are open here."""
        layers = [self._memory.state, *(self._slow.states if self._slow else ())]
        return msgspec.structs.replace(self._inside.state, n_open=len(self._open), cache=tuple(layers))

    def check_room(self, caller: Caller = ANYONE) -> None:
        """Raise as the back end inside does, unless it is full and the request may well be known."""
        try:
            self._inside.check_room(caller)
        except Overloaded:
            if self._known_share < KNOWN_SHARE:
                self._n_refused += 1
                if self._n_refused % LOOKED_AT:
                    raise

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
        """Find or compute the rows of texts, as `Backend.submit` says.

        What is known is answered though the back end inside is full. What that raises once slow layers were asked, the
        future fails with. What is computed in the background goes by: its rows must not depend on what is known.
        """
        if caller.background:
            return self._inside.submit(
                tokens, kind=kind, deadline=deadline, times=times, progress=progress, caller=caller
            )
        keys = self._keys.of(tokens, kind, caller)
        starts = row_starts(tokens, kind)
        since = time_limit(self._ttl_s)
        report = ProgressReport(progress, len(tokens)) if progress else None
        with self._lock:
            found = self._in_memory(keys, starts, since)
            whole = None not in found
            self._known_share += (whole - self._known_share) / RECENT_REQUESTS
            if not whole:
                future = self._futures.new()
                asked = Asked(tokens, keys, starts, kind, self._dim, future, deadline, times, report, caller)
                self._open.add(asked)
                self._put(asked, zip(keys, found, strict=True))
                left = self._flights.join(asked, list(asked.missing))
                flight = self._flights.open(asked, left) if left and not self._slow else None
        _note_looked_up(times)
        if whole:
            return self._known(tokens, starts[-1], found, times, report)  # type: ignore[arg-type]
        if flight:
            self._fly(flight)
        elif left:
            self._look_up(asked, left, since)
        asked.held = False
        if isinstance(asked.outcome, Exception):
            self._open.discard(asked)
            raise asked.outcome
        self._tell([asked])
        # `_open` holds it while it is open. If the callback did, too, it and the future would hold each other for ever.
        wanted = weakref.ref(asked)
        future.add_done_callback(lambda future: self._left(wanted()) if future.cancelled() else None)
        return future

    def _in_memory(self, keys: Sequence[bytes], starts: Sequence[int], since: float) -> list[bytes | None]:
        """Return the entries that memory has; called with the lock."""
        row_bytes = 4 * self._dim
        return [
            self._memory.get(key, row_bytes * (end - start), since)
            for key, start, end in zip(keys, starts, starts[1:], strict=False)
        ]

    def close(self) -> Awaitable[None] | None:
        """Close the back end inside, then the layers."""
        closing = self._inside.close()
        if closing is not None:
            return self._close_after(closing)
        if self._slow:
            self._slow.close()
        return None

    async def _close_after(self, closing: Awaitable[None]) -> None:
        await closing
        if self._slow:
            await asyncio.to_thread(self._slow.close)

    def _known(
        self,
        tokens: Sequence[Tokens],
        n_rows: int,
        entries: Sequence[bytes],
        times: Times | None,
        report: ProgressReport | None,
    ) -> RowsFuture:
        """Answer a request of which memory has every row."""
        with contextlib.suppress(Overloaded):  # what is known needs no room
            self._inside.check_room()
        if times:
            times.cached_tokens += sum(map(len, tokens))
        if report:
            report.tell(len(tokens))
        # A copy, which the caller may write to.
        whole = bytearray().join(map(numbers, entries))
        future = self._futures.new()
        future.set_result(np.frombuffer(whole, np.float32).reshape(n_rows, self._dim))
        return future

    def _look_up(self, asked: Asked[RowsFuture], keys: Sequence[bytes], since: float) -> None:
        """Ask the slow layers for what memory has not, and go on when they have answered or are too slow."""
        assert self._slow
        lookup = self._slow.look_up({key: 4 * self._dim * asked.n_rows(key) for key in keys}, since)
        if lookup:
            # They are asked for some at a time; and the more there are, the longer it would take to compute them.
            patience_s = READ_S * math.ceil(len(keys) / LOOKUP_TEXTS)
            self._futures.wait(lookup, patience_s, lambda: self._looked_up(asked, keys, lookup, since))
        else:
            self._compute(asked, keys)

    def _looked_up(self, asked: Asked[RowsFuture], keys: Sequence[bytes], lookup: Lookup, since: float) -> None:
        """Go on with a request once the slow layers were asked, or have taken too long."""
        _note_looked_up(asked.times)
        found = lookup.found.copy()
        with self._lock:
            for key, entry in found.items():
                self._memory.put(key, entry)
            if asked.is_over:
                return
            for key in keys:  # some may have been computed meanwhile
                if landed := self._memory.peek(key, 4 * self._dim * asked.n_rows(key), since):
                    found[key] = landed
            self._put(asked, found.items())
            if not asked.missing and not asked.n_computed:
                self._known_share += (1 - self._known_share) / RECENT_REQUESTS
        self._tell([asked])
        self._compute(asked, [key for key in keys if key in asked.missing])

    def _put(self, asked: Asked[RowsFuture], entries: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, entry in entries:
            if entry is not None and key in asked.missing:
                asked.put(key, np.frombuffer(numbers(entry), np.float32).reshape(-1, self._dim))

    def _compute(self, asked: Asked[RowsFuture], keys: Sequence[bytes]) -> None:
        """Have the rows of a request's `keys` computed, or wait for those that are being computed."""
        with self._lock:
            if asked.is_over or not keys:
                return
            left = self._flights.join(asked, keys)
            flight = self._flights.open(asked, left) if left else None
        if flight:
            self._fly(flight)

    def _fly(self, flight: Flight[RowsFuture]) -> None:
        """Give a flight to the back end inside."""
        owner = flight.owner
        n_before = owner.n_done
        progress: Progress | None = (lambda n_done, _: owner.progressed(n_before + n_done)) if owner.report else None
        try:
            future = self._inside.submit(
                list(flight.texts.values()),
                kind=owner.kind,
                deadline=owner.deadline,
                times=owner.times,
                progress=progress,
                caller=owner.caller,
            )
        except Exception as error:
            self._crashed(flight, error)
            return
        with self._lock:
            flight.future = future
            unwanted = not flight.passengers
        if unwanted:
            future.cancel()
        future.add_done_callback(lambda future: self._ended(flight, future))

    def _ended(self, flight: Flight[RowsFuture], future: RowsFuture) -> None:
        with self._lock:
            flight.future = None  # which holds this callback, and so the flight
        if future.cancelled():  # nobody waited for it any more
            return
        error = future.exception()
        if error is None:
            self._landed(flight, future.result())
        elif isinstance(error, Exception):
            self._crashed(flight, error)

    def _landed(self, flight: Flight[RowsFuture], rows: Rows) -> None:
        """Keep the rows of a flight, and give them to all who wait for them, also if its owner has left."""
        blocks = flight.blocks(rows)
        entries = self._entries(blocks, are_finite=math.isfinite(np.add.reduce(rows, axis=None)))
        with self._lock:
            for key, entry in entries.items():
                self._memory.put(key, entry)
            passengers = self._flights.land(flight, rows, blocks)
        if self._slow and entries:
            self._slow.store(entries)
        self._tell(passengers)

    def _entries(self, blocks: Mapping[bytes, Rows], *, are_finite: bool) -> dict[bytes, bytes]:
        """Make entries of the rows that may be kept."""
        now, left, entries = time.time(), MAX_KEPT_BYTES, {}
        for key, block in blocks.items():
            if block.nbytes <= min(left, MAX_ENTRY_BYTES) and (are_finite or np.isfinite(block).all()):
                entries[key] = sealed(block.tobytes(), now)
                left -= block.nbytes
        return entries

    def _crashed(self, flight: Flight[RowsFuture], error: Exception) -> None:
        """Fail those whose error it is, and have the others' rows computed by themselves."""
        with self._lock:
            failed, stranded = self._flights.crash(flight, error)
            unwanted = [future for asked in failed for future in self._flights.leave(asked)]
        for future in unwanted:
            future.cancel()
        self._tell(failed)
        for asked, keys in stranded:
            self._compute(asked, keys)

    def _left(self, asked: Asked[RowsFuture] | None) -> None:
        """Let go of what only a caller who has left was waiting for."""
        if asked is None:
            return
        with self._lock:
            asked.has_left = True
            self._open.discard(asked)
            unwanted = self._flights.leave(asked)
        for future in unwanted:
            future.cancel()

    def _tell(self, requests: Sequence[Asked[RowsFuture]]) -> None:
        """Tell callers how far their requests are; called without the lock, as it runs their code."""
        for asked in requests:
            asked.settle()
            if asked.outcome is not None:
                self._open.discard(asked)


def _note_looked_up(times: Times | None) -> None:
    if times and not times.started:
        times.looked_up = time.monotonic()


def with_cache(
    inside: Backend[RowsFuture], config: EngineConfig, weights: Weights, content: bytes, futures: Futures[RowsFuture]
) -> Backend[RowsFuture]:
    """Return a back end that keeps the rows of `inside`, or `inside` itself where a config keeps none.

    Args:
        inside: Computes with the model.
        config: The model's settings, with `max_batch_tokens` filled in.
        weights: Its weights; a `vocab_only` load is enough.
        content: The hash of its files (`key.weights_hash`).
        futures: Makes the futures of `inside`.

    Raises:
        ConfigError: A layer cannot be used.
    """
    if not keeps_rows(config):
        return inside
    layers = slow_layers(config)
    return CachedBackend(
        inside,
        RowKeys.of_model(config, weights, content),
        MemoryLayer(config.cache_bytes),
        SlowLayers(layers) if layers else None,
        futures,
        dim=weights.dim,
        full_batch=config.max_batch_tokens,
        ttl_s=config.cache_ttl_s,
    )


def keeps_rows(config: EngineConfig) -> bool:
    """Tell whether a config has any layer."""
    return bool(config.cache_bytes or config.cache_file or config.redis_url)
