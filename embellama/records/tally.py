"""Count the lines of a request log: `tally` reads them with DuckDB, `Group` has the counts.

files of the period ── DuckDB: lines ──► (group, slot, error, bucket), counted ──► Group … ──► stats, compare, chart

A slot is an equal part of the time; a bucket is a range of latencies whose ends differ by 0.5%, known by the
average of those in it, so a percentile is within 0.5% of the exact one. Only counts are kept, however many lines there
are.
"""

import importlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.errors import ConfigError
from embellama.records.line import VERSION, log_files
from embellama.records.period import Period, covered

# What requests may be grouped by: fields of a line.
GROUPINGS = ("model", "key", "client", "path", "status")

# The code that stands for a client that hung up.
CLIENT_GONE = "client_gone"

BUCKET = math.log(1.005)

# Latencies below are one bucket; lines have no digits beyond.
LEAST_MS = 0.001

MEMORY = "1GB"

Counts = NDArray[np.int64]


class Group(NamedTuple):
    """Requests of one group, counted.

    Except for `n` and `n_retries`, these are of requests that were answered with success.

    name: What they have in common; empty for all, or where the field is.
    n: All requests, ``(n_slots,)``.
    n_retries: Requests that the client had sent before, ``(n_slots,)``.
    n_good: Answered with success, ``(n_slots,)``.
    n_texts, n_tokens, n_cached_tokens, n_truncated: Sums, ``(n_slots,)``.
    total_ms: Sum of milliseconds, ``(n_slots,) float64``.
    histogram: Requests in each bucket, ``(n_slots, n_buckets)``.
    bucket_ms: Average milliseconds in each bucket, in any group, ascending, ``(n_buckets,) float64``.
    errors: All other requests, by code.
    """

    name: str
    n: Counts
    n_retries: Counts
    n_good: Counts
    n_texts: Counts
    n_tokens: Counts
    n_cached_tokens: Counts
    n_truncated: Counts
    total_ms: NDArray[np.float64]
    histogram: Counts
    bucket_ms: NDArray[np.float64]
    errors: dict[str, int]


class Tally(NamedTuple):
    """All requests of a period.

    period: The time from the first line to the last, in `n_slots` equal parts.
    groups: In the order of their requests, most first; empty if there were none.
    unreadable: Lines, of any time, that are torn or are no lines of a request log, counted by file.
    """

    period: Period
    groups: list[Group]
    unreadable: dict[str, int]

    @property
    def n_unreadable(self) -> int:
        """All unreadable lines."""
        return sum(self.unreadable.values())


def tally(folder: str, period: Period, by: str = "", n_slots: int = 1) -> Tally:
    """Count the requests of a period.

    Args:
        folder: The folder of a request log.
        period: The time.
        by: One of `GROUPINGS`; empty for one group of all.
        n_slots: Parts of the time to count apart.

    Raises:
        ConfigError: The folder is none of a request log, or cannot be read; or DuckDB is missing.
    """
    assert by in ("", *GROUPINGS)
    try:
        files = log_files(Path(folder))
        if not files:
            raise ConfigError(f"{folder} has no files of a request log, such as requests-2026-11-27-….jsonl")
        paths = [path for day, path in files if period.since.date() <= day <= period.until.date()]
        has_lines = covered(paths, period)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from None
    if not paths:
        return Tally(period, [], {})
    counted = _counted(folder, paths, period, by, _slot(has_lines, n_slots))
    readable = ~np.ma.getmaskarray(counted["name"])
    unreadable = dict(zip(counted["error"][~readable].tolist(), counted["n"][~readable].tolist(), strict=True))
    columns = {name: np.asarray(column[readable]) for name, column in counted.items()}
    return Tally(has_lines, _groups(columns, n_slots) if len(columns["n"]) else [], unreadable)


_SQL = """
WITH lines AS (
    SELECT *, coalesce(v = {version} AND time IS NOT NULL AND status IS NOT NULL AND total_ms >= 0
                       AND isfinite(total_ms), false) AS ok, status BETWEEN 200 AND 299 AS good
    FROM read_json(?, columns = {{{columns}}}, format = 'newline_delimited', ignore_errors = true, filename = true)
)
SELECT
    CASE WHEN ok THEN {name} END AS name,
    CASE WHEN ok THEN {slot} END AS slot,
    CASE WHEN NOT ok THEN filename
         WHEN NOT good THEN coalesce(error, CASE status WHEN 0 THEN '{gone}' ELSE CAST(status AS VARCHAR) END)
         ELSE '' END AS error,
    CASE WHEN ok AND good THEN CAST(ceil(ln(greatest(total_ms, {least})) / {bucket}) AS INTEGER) ELSE 0 END AS bucket,
    count(*) AS n,
    count_if(n_retries > 0) AS n_retries,
    CAST(coalesce(sum(n_texts), 0) AS BIGINT) AS n_texts,
    CAST(coalesce(sum(n_tokens), 0) AS BIGINT) AS n_tokens,
    CAST(coalesce(sum(n_cached_tokens), 0) AS BIGINT) AS n_cached_tokens,
    CAST(coalesce(sum(n_truncated), 0) AS BIGINT) AS n_truncated,
    coalesce(sum(total_ms), 0) AS total_ms
FROM lines
WHERE NOT ok OR (time >= ? AND time < ?)
GROUP BY ALL
"""

_COLUMNS = {"v": "BIGINT", "time": "TIMESTAMP", "status": "SMALLINT", "error": "VARCHAR", "total_ms": "DOUBLE"}
_COLUMNS |= dict.fromkeys(("n_retries", "n_texts", "n_tokens", "n_cached_tokens", "n_truncated"), "INTEGER")


def _counted(folder: str, paths: Sequence[Path], period: Period, by: str, slot: str) -> dict[str, Any]:
    """Have DuckDB count; return its columns as arrays.

    Where lines could not be read `name` is masked, and `error` is their file.
    """
    since, until = (each.replace(tzinfo=None) for each in period)
    columns = {**_COLUMNS, **({by: "VARCHAR"} if by and by != "status" else {})}
    sql = _SQL.format(
        version=VERSION,
        columns=", ".join(f"{name}: '{kind}'" for name, kind in columns.items()),
        name=f"coalesce(CAST({by} AS VARCHAR), '')" if by else "''",
        slot=slot,
        gone=CLIENT_GONE,
        least=LEAST_MS,
        bucket=BUCKET,
    )
    duckdb = _duckdb()
    with tempfile.TemporaryDirectory() as spill:
        config = {"memory_limit": MEMORY, "temp_directory": spill, "preserve_insertion_order": "false"}
        # Nothing is ever fetched from anywhere.
        config |= {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        try:
            with duckdb.connect(config=config) as connection:
                # Its bar would be drawn among what is printed.
                connection.execute("SET enable_progress_bar = false")
                found: dict[str, Any] = connection.execute(sql, [_literal(paths), since, until]).fetchnumpy()
        except duckdb.Error as error:
            raise ConfigError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from error
    return found


def _slot(period: Period, n_slots: int) -> str:
    """Write in SQL which part of a period a line is in; one that is a little before or after it is in the nearest."""
    if n_slots == 1:
        return "0"
    part_us = max(1, round(period.seconds * 1e6 / n_slots))
    since_us = round(period.since.timestamp() * 1e6)
    return f"greatest(0, least({n_slots - 1}, (epoch_us(time) - {since_us}) // {part_us}))"


def _literal(paths: Sequence[Path]) -> list[str]:
    """Write paths so that DuckDB finds no patterns in them."""
    return ["".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path)) for path in paths]


def _groups(columns: dict[str, Any], n_slots: int) -> list[Group]:
    columns["name"], columns["error"] = columns["name"].astype(str), columns["error"].astype(str)
    order = np.argsort(columns["name"], kind="stable")
    columns = {key: column[order] for key, column in columns.items()}
    names, starts = np.unique(columns["name"], return_index=True)
    good = columns["error"] == ""
    buckets = np.unique(columns["bucket"][good])
    place = np.searchsorted(buckets, columns["bucket"][good])
    bucket_ms = np.bincount(place, columns["total_ms"][good]) / np.bincount(place, columns["n"][good])
    groups = []
    for name, start, end in zip(names.tolist(), starts, [*starts[1:], len(good)], strict=True):
        rows = {key: column[start:end] for key, column in columns.items()}
        groups.append(_group(name, rows, good[start:end], buckets, bucket_ms, n_slots))
    return sorted(groups, key=lambda group: (-int(group.n.sum()), group.name))


def _group(
    name: str,
    rows: dict[str, Any],
    good: NDArray[np.bool_],
    buckets: Counts,
    bucket_ms: NDArray[np.float64],
    n_slots: int,
) -> Group:
    slot = rows["slot"].astype(np.int64)

    def sums(column: str, of: Any = good) -> Any:
        return np.bincount(slot[of], rows[column][of], n_slots).astype(np.int64)

    histogram = np.zeros((n_slots, len(buckets)), np.int64)
    np.add.at(histogram, (slot[good], np.searchsorted(buckets, rows["bucket"][good])), rows["n"][good])
    codes, code_of = np.unique(rows["error"][~good], return_inverse=True)
    n_errors = np.bincount(code_of, rows["n"][~good], len(codes)).astype(int).tolist()
    everything = np.ones_like(good)
    return Group(
        name=name,
        n=sums("n", everything),
        n_retries=sums("n_retries", everything),
        n_good=sums("n"),
        n_texts=sums("n_texts"),
        n_tokens=sums("n_tokens"),
        n_cached_tokens=sums("n_cached_tokens"),
        n_truncated=sums("n_truncated"),
        total_ms=np.bincount(slot[good], rows["total_ms"][good], n_slots).astype(np.float64),
        histogram=histogram,
        bucket_ms=bucket_ms,
        errors=dict(sorted(zip(codes.tolist(), n_errors, strict=True), key=lambda each: (-each[1], each[0]))),
    )


def _duckdb() -> Any:
    try:
        return importlib.import_module("duckdb")
    except ImportError as error:
        raise ConfigError(f"a request log is read with DuckDB: pip install 'embellama[stats]' ({error})") from error
