"""`RequestLog`: a JSON line for each request of a dialect, in files that are kept for some days, with `--request-log`.

Exchange ── RequestRecord ──► RequestLog.add ──► a bounded queue          event loop: no disk, no formatting
                                                   │ every FLUSH_S
                          a thread: LineWriter ◄───┘ some records ──► RequestLine … ──► DayFile.append, whole lines
                                                                                          │ a disk that is full: kept
                                                                                          ▼ and written later
                                                                      DIR/requests-DAY-PROCESS.jsonl

Each process writes files of its own, so nobody's lines are between its own, and a line that a kill has cut is the last
one of its file. What is written is with the system at once: it outlives the process, though not the machine.
"""

import collections
import datetime
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from embellama.errors import ConfigError
from embellama.records.hashes import make_key
from embellama.records.line import log_files
from embellama_server.telemetry.day_file import DayFile
from embellama_server.telemetry.log_lines import Lines, LineWriter
from embellama_server.telemetry.record import RequestRecord

logger = logging.getLogger("embellama.request_log")

# A kill loses the requests of so many seconds; a shorter time wakes the thread more often for nothing.
FLUSH_S = 0.25

# Records that wait to be written, about 2 kB each with their texts; further ones are dropped, and counted. At 2,000
# requests a second they last for 5 s of a disk that does not answer.
QUEUED = 10_000

# Characters of their texts. Texts beyond that are not kept, and their line has no hashes.
QUEUED_CHARACTERS = 16_000_000

# Lines that are made together, in about 0.5 ms: meanwhile the event loop waits.
TOGETHER = 64

# How long the end of the server waits for the last lines.
CLOSE_S = 2.0

# How often the log says that lines are not written.
WARN_S = 60.0

# How often files that are too old are looked for.
REMOVE_S = 3600.0


class RequestLog(Collector):
    """Writes requests to a folder, in a thread; `add` is for the event loop.

    Attributes:
        n_written: Lines that are with the system.
    """

    def __init__(self, folder: Path, days: int, *, with_texts: bool):
        """Take a folder, and begin; raises `ConfigError` if nothing can be written there."""
        self._folder, self._days = folder, days
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            make_key(folder)
            self._remove_old()
        except OSError as error:
            raise ConfigError(f"request_log is {str(folder)!r}: {error.strerror}") from None
        self._file = DayFile(folder, secrets.token_hex(8))
        self._lines = LineWriter(folder, with_texts=with_texts)
        self._queue: collections.deque[RequestRecord] = collections.deque()
        self._unwritten: collections.deque[Lines] = collections.deque()
        # Each of these is counted by one thread only.
        self._n_characters_in = self._n_characters_out = 0
        self._n_refused = self._n_failed = self._n_told = 0
        self.n_written = 0
        self._next_warning = 0.0  # while there is trouble
        self._next_removal = time.monotonic() + REMOVE_S
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    @property
    def n_dropped(self) -> int:
        """Requests that have no line: the disk was full, or too slow."""
        return self._n_refused + self._n_failed

    def add(self, record: RequestRecord) -> None:
        """Queue a request that is over."""
        if len(self._queue) >= QUEUED:
            self._n_refused += 1
            return
        if record.texts:
            n_characters = sum(map(len, record.texts))
            if self._n_characters_in - self._n_characters_out + n_characters <= QUEUED_CHARACTERS:
                self._n_characters_in += n_characters
            else:
                record = record._replace(texts=())
        self._queue.append(record)

    def close(self) -> None:
        """Write what is queued, for `CLOSE_S` at most."""
        self._closing.set()
        self._thread.join(CLOSE_S)
        if n_left := len(self._queue) + sum(lines.n for lines in list(self._unwritten)):
            logger.error("the last %d requests are not in the request log", n_left)

    def collect(self) -> Iterable[Metric]:
        """Make families of what was counted, as a collector of `prometheus_client` does."""
        lines = CounterMetricFamily("embellama_request_log_lines", "Lines of the request log that were written.")
        dropped = CounterMetricFamily(
            "embellama_request_log_dropped", "Requests without a line: the disk was full, or too slow."
        )
        lines.add_metric([], self.n_written)
        dropped.add_metric([], self.n_dropped)
        return [lines, dropped]

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(FLUSH_S)
            try:
                self._write_queued()
                self._tell_of_recovery()
                if time.monotonic() >= self._next_removal:
                    self._next_removal = time.monotonic() + REMOVE_S
                    self._remove_old()
            except OSError as error:
                self._warn(error)
            except Exception:  # a bug of ours must not end the log
                logger.exception("unexpected error")
        self._file.close()

    def _write_queued(self) -> None:
        """Write what is queued, a few lines at a time, and those first that could not be written before."""
        while self._unwritten or self._queue:
            if not self._unwritten:
                self._unwritten.extend(self._next_lines())
                continue
            lines = self._unwritten[0]
            self._file.append(lines.day, lines.data)
            self.n_written += lines.n
            self._unwritten.popleft()

    def _next_lines(self) -> list[Lines]:
        """Take some records out of the queue; with them go their texts, once they are hashed."""
        records: list[RequestRecord] = []
        n_texts = 0
        while self._queue and len(records) < TOGETHER and n_texts < TOGETHER:
            record = self._queue.popleft()
            records.append(record)
            n_texts += len(record.texts)
            self._n_characters_out += sum(map(len, record.texts))
        try:
            return self._lines.lines(records)
        except Exception:
            self._n_failed += len(records)
            raise

    def _warn(self, error: OSError) -> None:
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + WARN_S
            logger.error("the request log is not written to %s, and is tried again: %s", self._folder, error)

    def _tell_of_recovery(self) -> None:
        n_lost, self._n_told = self.n_dropped - self._n_told, self.n_dropped
        if self._next_warning or n_lost:
            self._next_warning = 0.0
            logger.warning("the request log is written again; %d requests have no line", n_lost)

    def _remove_old(self) -> None:
        """Remove the files of days that are over for longer than they are kept."""
        first = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=self._days)
        for day, path in log_files(self._folder):
            if day < first:
                path.unlink(missing_ok=True)  # another server of the folder may do so, too
