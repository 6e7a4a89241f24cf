"""`SqliteLayer`: rows kept in a file, for later runs and for other processes of this machine.

One table of keys and entries. Its log is written ahead (WAL), so that readers never wait, a killed process leaves a
whole file, and several processes may share one. Used by one thread, that of `SlowLayers`.
"""

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from embellama.errors import ConfigError

logger = logging.getLogger("embellama.cache")

# In the file's header: that it is ours, and which tables it has.
APPLICATION_ID = 0x656D626C  # "embl"
SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, entry BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS rows_used ON rows (used);
"""

# How long to wait for another process that writes: at the start, and later, when rows are rather left out.
START_TIMEOUT_S = 5.0
BUSY_TIMEOUT_MS = 100

# Keys in one query.
N_KEYS = 500

# When an entry was used is written only if that was so long after the last time: reading should not mean writing.
TOUCH_S = 3600
MAX_TOUCHED = 1000

# Of a file that is too large, this share of the entries is dropped at once, those used longest ago.
EVICTED_SHARE = 0.1

# After an error, such as a full disk, nothing is written for so long.
PAUSE_S = 60.0

# Most bytes that the log keeps beside the file between writes.
LOG_BYTES = 16 * 1024 * 1024


class SqliteLayer:
    """A layer in a SQLite file.

    Attributes:
        name: Of the layer, in metrics.
        n_bytes: Bytes of the file that are in use.
        n_evicted: Entries dropped because there were too many bytes.
        trouble: Why it reads or writes nothing; empty while it does.
    """

    name = "sqlite"

    def __init__(self, path: str, max_bytes: int):
        """Open the file, or make it.

        Args:
            path: The file.
            max_bytes: Most bytes of it in use.

        Raises:
            ConfigError: It cannot be opened or made, or is another program's.
        """
        self._path, self._max_bytes = path, max_bytes
        self.n_bytes: int | None = 0
        self.n_evicted = 0
        self.trouble = ""
        self._broken = False
        self._write_again_at = 0.0
        self._touched: list[bytes] = []
        try:
            self._db = sqlite3.connect(
                Path(path).absolute().as_uri(),
                uri=True,
                timeout=START_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._open()
        except sqlite3.Error as error:
            raise ConfigError(f"cache_file is {path!r}, which cannot be used: {error}") from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that are there; what cannot be read is not."""
        found: dict[bytes, bytes] = {}
        if self._broken:
            return found
        now = int(time.time())
        try:
            for start in range(0, len(keys), N_KEYS):
                part = keys[start : start + N_KEYS]
                query = f"SELECT key, used, entry FROM rows WHERE key IN ({','.join('?' * len(part))})"
                for key, used, entry in self._db.execute(query, part):
                    if isinstance(entry, bytes):
                        found[key] = entry
                        if not 0 <= now - used < TOUCH_S:
                            self._touched.append(key)
        except sqlite3.Error as error:
            self._failed(error)
        if len(self._touched) >= MAX_TOUCHED:
            self.put({})
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries, and drop old ones if the file is too large. What cannot be written is left out."""
        if self._broken or time.monotonic() < self._write_again_at:
            return
        now = int(time.time())
        touched, self._touched = self._touched, []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("UPDATE rows SET used = ? WHERE key = ?", [(now, key) for key in touched])
                self._db.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET used = excluded.used, entry = excluded.entry",
                    [(key, now, entry) for key, entry in entries.items() if len(entry) <= self._max_bytes // 8],
                )
                n_evicted = self._evict(2 * len(entries))
                self._db.execute("COMMIT")
                self.n_bytes = self._used_bytes()
                self.n_evicted += n_evicted
                self.trouble = ""
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._failed(error)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _open(self) -> None:
        (id,) = self._db.execute("PRAGMA application_id").fetchone()
        (n_tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if id != APPLICATION_ID and (id or n_tables):
            raise sqlite3.DatabaseError("it is another program's")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # no flush to disk for each write; a killed process loses none
        self._db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.executescript(SCHEMA)
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        self.n_bytes = self._used_bytes()

    def _evict(self, least: int) -> int:
        """Drop some of the entries used longest ago, `least` at least, if the file is too large; return how many."""
        if self._used_bytes() <= self._max_bytes:
            return 0
        (n_rows,) = self._db.execute("SELECT count(*) FROM rows").fetchone()
        n_entries = max(least, int(EVICTED_SHARE * n_rows))
        oldest = "SELECT rowid FROM rows ORDER BY used LIMIT ?"
        return self._db.execute(f"DELETE FROM rows WHERE rowid IN ({oldest})", (n_entries,)).rowcount

    def _used_bytes(self) -> int:
        n_pages, n_free, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((n_pages - n_free) * page_bytes)

    def _failed(self, error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its details
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return  # another process writes
        self._broken = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        self._write_again_at = time.monotonic() + PAUSE_S
        what = "is damaged and not used any more" if self._broken else "is not written to for now"
        if not self.trouble:  # told once
            logger.warning("cache_file %s %s: %s", self._path, what, error)
        self.trouble = f"the file {what}: {error}"
