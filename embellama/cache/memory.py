"""`MemoryLayer`: rows kept in this process, those used longest ago dropped when there are too many bytes."""

from collections import OrderedDict

from embellama.backend import LayerState
from embellama.cache.entry import HEAD_BYTES, born

# What Python takes for an entry beside its own bytes: its key, heads of objects, a place in the table. 172 to 213 were
# measured.
OVERHEAD = 220


class MemoryLayer:
    """The first layer. Not locked: it is used by one thread at a time."""

    def __init__(self, max_bytes: int):
        """Make an empty layer of at most `max_bytes`, its own needs included; with 0 it keeps nothing."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._n_bytes = 0
        self._n_hits = self._n_misses = self._n_evicted = 0

    @property
    def state(self) -> LayerState:
        """The layer's current state."""
        return LayerState("memory", self._n_hits, self._n_misses, self._n_bytes, self._n_evicted)

    def get(self, key: bytes, n_bytes: int, since: float) -> bytes | None:
        """Return the entry of `key` with so many bytes of numbers, made at `since` or later, or None."""
        entry = self.peek(key, n_bytes, since)
        if entry is None:
            self._n_misses += 1
        else:
            self._n_hits += 1
            self._entries.move_to_end(key)
        return entry

    def peek(self, key: bytes, n_bytes: int, since: float) -> bytes | None:
        """Return what `get` would, without counting it as a use."""
        entry = self._entries.get(key)
        if entry is None or len(entry) != HEAD_BYTES + n_bytes or (since and born(entry) < since):
            return None
        return entry

    def put(self, key: bytes, entry: bytes) -> None:
        """Keep an entry, unless it would take an eighth of the layer or more: it would drive out too many others."""
        n_bytes = len(entry) + OVERHEAD
        if n_bytes > self._max_bytes // 8:
            return
        if (old := self._entries.pop(key, None)) is not None:
            self._n_bytes -= len(old) + OVERHEAD
        self._entries[key] = entry
        self._n_bytes += n_bytes
        while self._n_bytes > self._max_bytes:
            _, gone = self._entries.popitem(last=False)
            self._n_bytes -= len(gone) + OVERHEAD
            self._n_evicted += 1
