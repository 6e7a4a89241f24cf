"""`Period`: the time that is asked about, as people write it; and the part of it that a request log has lines of."""

import datetime
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from embellama.errors import ConfigError

_DAYS = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.\.(\d{4}-\d{2}-\d{2}))?")

# Enough for the first or the last line of a file, with texts.
_LINE_BYTES = 1 << 17


class Period(NamedTuple):
    """A time, in UTC.

    since: Its beginning.
    until: Its end, which it does not have.
    """

    since: datetime.datetime
    until: datetime.datetime

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.until - self.since).total_seconds()

    def __str__(self) -> str:
        since, until = (each.strftime("%Y-%m-%d %H:%M") for each in self)
        return f"{since} to {until} UTC"


def last_days(days: float) -> Period:
    """Return the last days, up to now."""
    # A line may be a moment younger than this.
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
    try:
        return Period(until - datetime.timedelta(days=days), until)
    except (OverflowError, ValueError):  # too many, or nan
        raise ConfigError(f"days is {days:g}: there is no such day") from None


def parse_days(text: str) -> Period | None:
    """Read ``2026-11-20``, or ``2026-11-01..2026-11-07`` with both days; None if it is no such thing.

    Raises:
        ConfigError: There are no such days, or they are in the wrong order.
    """
    if not (found := _DAYS.fullmatch(text)):
        return None
    try:
        first, last = (datetime.date.fromisoformat(day) for day in (found[1], found[2] or found[1]))
        until = datetime.datetime.combine(last + datetime.timedelta(days=1), datetime.time(), datetime.UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"{text}: there is no such day") from None
    if last < first:
        raise ConfigError(f"{text}: the first day comes after the last")
    return Period(datetime.datetime.combine(first, datetime.time(), datetime.UTC), until)


class _Time(msgspec.Struct):
    time: datetime.datetime


def covered(files: Iterable[Path], period: Period) -> Period:
    """Return the part of a period that files of a request log have lines of; the period itself if they have none.

    A file's lines are about in the order of their times, so its first and last ones are looked at.
    """
    found = [
        (max(period.since, min(times)), min(period.until, max(times) + datetime.timedelta(milliseconds=1)))
        for path in files
        if (times := _ends(path)) and max(times) >= period.since and min(times) < period.until
    ]
    return Period(min(since for since, _ in found), max(until for _, until in found)) if found else period


def _ends(path: Path) -> list[datetime.datetime]:
    """Read the times of a file's first line and its last whole one; none for lines that are not ours."""
    with path.open("rb") as file:
        first = file.readline(_LINE_BYTES)
        file.seek(max(0, path.stat().st_size - _LINE_BYTES))
        last = file.read(_LINE_BYTES).split(b"\n")[-2:-1]
    found = []
    for line in (first, *last):
        try:
            time = msgspec.json.decode(line, type=_Time).time
        except msgspec.MsgspecError:
            continue
        if time.tzinfo:
            found.append(time)
    return found
