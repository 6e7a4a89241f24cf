"""`SlowLayers`: ask the layers outside this process, and write to them, on a thread of their own.

   requests                            │ one thread
                                       │
   look_up ──► Lookup, in a queue ════════► layer by layer, for what is still unknown ──► Lookup.found
   store ────► entries, in a queue ═══════► into every layer, when nobody looks anything up
                                       │    what a later layer had ──► into those before it

Both queues have a bound. What has no room in them is not looked up, or not kept: nobody waits for a slow layer.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from embellama.backend import LayerState
from embellama.cache.entry import is_sound
from embellama.cache.redis import RedisLayer
from embellama.cache.sqlite import SqliteLayer
from embellama.config import EngineConfig

logger = logging.getLogger("embellama.cache")

# How long a request waits for slow layers, for each `LOOKUP_TEXTS` of its texts, before its rows are computed. A short
# text takes about as long to compute.
READ_S = 0.004

# Texts that wait to be looked up, at most; one takes 20 µs in SQLite. And texts that are looked up at once: what is
# found is known to the request that far when its time is over.
MAX_LOOKUPS = 4096
LOOKUP_TEXTS = 128

# Bytes that wait to be written, at most; and how many are written at once, while lookups wait.
MAX_STORE_BYTES = 32 * 1024 * 1024
STORE_BYTES = 1024 * 1024

# How long closing waits for what is not written yet.
CLOSE_S = 2.0


class SlowLayer(Protocol):
    """A place outside this process where entries are kept. It is used by one thread, and never raises."""

    name: str
    n_bytes: int | None
    n_evicted: int
    trouble: str

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are there, damaged ones too."""

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Keep entries."""

    def close(self) -> None:
        """Let go of it."""


def slow_layers(config: EngineConfig) -> "list[SlowLayer]":
    """Open the layers of a config that are outside this process, in the order in which they are asked.

    Raises:
        ConfigError: One cannot be used.
    """
    layers: list[SlowLayer] = []
    if config.cache_file:
        layers.append(SqliteLayer(config.cache_file, config.cache_file_bytes))
    if config.redis_url:
        layers.append(RedisLayer(config.redis_url, config.cache_ttl_s, READ_S))
    return layers


class Lookup:
    """Keys that are looked up.

    Attributes:
        wanted: The keys, each with the bytes of numbers that its rows have.
        found: The entries found so far; it grows until `done`.
        done: Has its result when all layers were asked. Cancelled, the rest is not looked up.
    """

    def __init__(self, wanted: Mapping[bytes, int], since: float):
        self.wanted = wanted
        self.since = since  # older entries are not wanted
        self.found: dict[bytes, bytes] = {}
        self.done: Future[None] = Future()


class _Stored(NamedTuple):
    """Entries to be written into the first `n_layers` layers."""

    entries: dict[bytes, bytes]
    n_bytes: int
    n_layers: int


class SlowLayers:
    """The layers outside this process. Any thread may use it."""

    def __init__(self, layers: Sequence[SlowLayer]):
        """Start the thread that asks `layers`, in that order."""
        self._layers = layers
        self._n_hits, self._n_misses = [0] * len(layers), [0] * len(layers)
        self._changed = threading.Condition()  # guards everything below
        self._lookups: deque[Lookup] = deque()
        self._n_lookups = 0  # texts
        self._stores: deque[_Stored] = deque()
        self._store_bytes = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="embellama-cache", daemon=True)
        self._thread.start()

    @property
    def states(self) -> list[LayerState]:
        """The current state of each layer."""
        return [
            LayerState(layer.name, n_hits, n_misses, layer.n_bytes, layer.n_evicted, layer.trouble)
            for layer, n_hits, n_misses in zip(self._layers, self._n_hits, self._n_misses, strict=True)
        ]

    def look_up(self, wanted: Mapping[bytes, int], since: float = 0.0) -> Lookup | None:
        """Look keys up; None if too many are being looked up already.

        Args:
            wanted: The keys, each with the bytes of numbers that its rows have.
            since: Entries made before, in seconds since 1970, are not wanted.
        """
        with self._changed:
            if self._closing or (self._lookups and self._n_lookups + len(wanted) > MAX_LOOKUPS):
                return None
            lookup = Lookup(wanted, since)
            self._lookups.append(lookup)
            self._n_lookups += len(wanted)
            self._changed.notify()
        return lookup

    def store(self, entries: dict[bytes, bytes]) -> None:
        """Write entries into every layer, some time; not if too many wait to be written already."""
        self._store(entries, len(self._layers))

    def close(self) -> None:
        """Write what waits, for `CLOSE_S` at most, and close the layers."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def _store(self, entries: dict[bytes, bytes], n_layers: int) -> None:
        n_bytes = sum(map(len, entries.values()))
        with self._changed:
            if self._closing or not n_layers or self._store_bytes + n_bytes > MAX_STORE_BYTES:
                return
            self._stores.append(_Stored(entries, n_bytes, n_layers))
            self._store_bytes += n_bytes
            self._changed.notify()

    def _run(self) -> None:
        while True:
            lookup: Lookup | None = None
            stored: list[_Stored] = []
            with self._changed:
                self._changed.wait_for(lambda: self._lookups or self._stores or self._closing)
                if self._lookups:
                    lookup = self._lookups.popleft()
                    self._n_lookups -= len(lookup.wanted)
                else:
                    stored = self._next_stores()
            try:
                if lookup:
                    self._look_up(lookup)
                elif stored:
                    self._write(stored)
                else:
                    break
            except Exception:  # our own mistake; the thread goes on, and rows are computed
                logger.exception("a layer of the cache failed")
        for layer in self._layers:
            layer.close()

    def _next_stores(self) -> list[_Stored]:
        """Take out what is written next: for the same layers, about `STORE_BYTES`."""
        taken: list[_Stored] = []
        n_bytes = 0
        while self._stores and n_bytes < STORE_BYTES and (not taken or self._stores[0].n_layers == taken[0].n_layers):
            taken.append(self._stores.popleft())
            n_bytes += taken[-1].n_bytes
        self._store_bytes -= n_bytes
        return taken

    def _write(self, stored: list[_Stored]) -> None:
        entries: dict[bytes, bytes] = {}
        for each in stored:
            entries |= each.entries
        for layer in self._layers[: stored[0].n_layers]:
            layer.put(entries)

    def _look_up(self, lookup: Lookup) -> None:
        keys = list(lookup.wanted)
        try:
            for start in range(0, len(keys), LOOKUP_TEXTS):
                if lookup.done.cancelled():
                    return
                self._look_up_some(keys[start : start + LOOKUP_TEXTS], lookup)
        finally:
            if lookup.done.set_running_or_notify_cancel():
                lookup.done.set_result(None)

    def _look_up_some(self, keys: list[bytes], lookup: Lookup) -> None:
        for place, layer in enumerate(self._layers):
            entries = layer.get(keys)
            sound = {key: e for key, e in entries.items() if is_sound(e, lookup.wanted[key], lookup.since)}
            self._n_hits[place] += len(sound)
            self._n_misses[place] += len(keys) - len(sound)
            lookup.found |= sound
            if place and sound:
                self._store(sound, place)
            keys = [key for key in keys if key not in sound]
            if not keys:
                return


def time_limit(ttl_s: int) -> float:
    """Return when entries must have been made to be used now, in seconds since 1970; with `ttl_s` 0 any may be."""
    return time.time() - ttl_s if ttl_s else 0.0
