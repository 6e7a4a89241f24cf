"""What the requests of a period come to: `stats` of a `Tally`, as figures for each group, a table or JSON."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.records.tally import Counts, Group, Tally

# Groups that a table shows; JSON has all.
SHOWN = 50

PERCENTS = (50, 95, 99)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one group.

    Attributes:
        name: What they have in common; empty where the field is.
        requests: How many there were.
        success_rate: Share of them with status 200 to 299.
        average_ms: Of those that succeeded, from when they came until they were answered; None if none did.
        p50_ms: So long or less took half of them; within 0.5%.
        p95_ms: So long or less took 95% of them.
        p99_ms: So long or less took 99% of them.
        texts: Of those that succeeded, as what follows.
        tokens: Tokens of all texts.
        cache_hit_rate: Share of tokens that are of texts whose rows were known; None without tokens.
        truncated: Texts of which tokens were left out.
        retries: Requests, good or not, that the client had sent before.
        errors: The others by code; ``client_gone`` for clients that hung up.
    """

    name: str
    requests: int
    success_rate: float
    average_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    texts: int
    tokens: int
    cache_hit_rate: float | None
    truncated: int
    retries: int
    errors: dict[str, int]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of a period.

    Attributes:
        since: When the first one was answered, in UTC.
        until: When the last one was.
        by: What they are grouped by; empty for not at all.
        total: All of them.
        groups: By `by`, most requests first.
        unreadable_lines: Lines that are torn or are no lines of a request log.
    """

    since: str
    until: str
    by: str
    total: Figures
    groups: list[Figures]
    unreadable_lines: int


def stats(counted: Tally, by: str) -> Stats:
    """Return the figures of a tally that has groups."""
    since, until = (each.isoformat(timespec="seconds").replace("+00:00", "Z") for each in counted.period)
    return Stats(
        since=since,
        until=until,
        by=by,
        total=figures(all_of(counted.groups)),
        groups=[figures(group) for group in counted.groups] if by else [],
        unreadable_lines=counted.n_unreadable,
    )


def all_of(groups: Sequence[Group]) -> Group:
    """Add groups of one tally up."""
    errors: dict[str, int] = {}
    for code, n in itertools.chain.from_iterable(group.errors.items() for group in groups):
        errors[code] = errors.get(code, 0) + n
    first = groups[0]
    added = {name: sum(getattr(group, name) for group in groups) for name in ADDED}
    errors = dict(sorted(errors.items(), key=lambda each: (-each[1], each[0])))
    return Group(name="", bucket_ms=first.bucket_ms, errors=errors, **added)


ADDED = tuple(name for name in Group._fields if name not in ("name", "bucket_ms", "errors"))


def figures(group: Group) -> Figures:
    """Return the figures of one group."""
    n, n_good, n_tokens = int(group.n.sum()), int(group.n_good.sum()), int(group.n_tokens.sum())
    p50, p95, p99 = (
        [round(float(each), 3) for each in percentiles(group.histogram.sum(0), group.bucket_ms)]
        if n_good
        else (None, None, None)
    )
    return Figures(
        name=group.name,
        requests=n,
        success_rate=n_good / n,
        average_ms=round(float(group.total_ms.sum()) / n_good, 3) if n_good else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        texts=int(group.n_texts.sum()),
        tokens=n_tokens,
        cache_hit_rate=int(group.n_cached_tokens.sum()) / n_tokens if n_tokens else None,
        truncated=int(group.n_truncated.sum()),
        retries=int(group.n_retries.sum()),
        errors=group.errors,
    )


def percentiles(
    histogram: Counts | NDArray[np.float64], bucket_ms: NDArray[np.float64], percents: Sequence[float] = PERCENTS
) -> NDArray[np.float64]:
    """Return percentiles of latencies: the least bucket that so many percent are not above.

    Args:
        histogram: Requests in each bucket, ``(…, n_buckets)``, one or more of them in all.
        bucket_ms: Milliseconds of each bucket, ``(n_buckets,)``.
        percents: Which percentiles.

    Returns:
        ``(n_percents, …) float64``.
    """
    summed = np.cumsum(histogram, axis=-1)
    wanted = [np.ceil(summed[..., -1:] * percent / 100).clip(1) for percent in percents]
    found: NDArray[np.float64] = bucket_ms[np.array([np.argmax(summed >= each, axis=-1) for each in wanted])]
    return found


def table(found: Stats) -> list[str]:
    """Write figures as lines of text, for people."""
    head = [found.by or "all", "requests", "success", "average ms", *(f"p{each} ms" for each in PERCENTS)]
    cells = [[*head, "texts", "tokens", "cached", "retries"]]
    cells += [_cells(group.name or "(none)", group) for group in found.groups[:SHOWN]]
    cells.append(_cells("total", found.total))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    if len(found.groups) > SHOWN:
        lines.insert(-1, f"… and {len(found.groups) - SHOWN} more, which --json has")
    if found.total.errors:
        lines += ["", "errors: " + ", ".join(f"{code} {n}" for code, n in found.total.errors.items())]
    return [f"{found.since} to {found.until}", "", *lines]


def _cells(name: str, group: Figures) -> list[str]:
    times = (group.average_ms, group.p50_ms, group.p95_ms, group.p99_ms)
    return [
        name,
        str(group.requests),
        percent(group.success_rate),
        *("—" if each is None else f"{each:.1f}" for each in times),
        str(group.texts),
        str(group.tokens),
        percent(group.cache_hit_rate),
        str(group.retries),
    ]


def percent(share: float | None) -> str:
    """Write a share as percent; 100% and 0% are exact, others are not rounded to them."""
    if share is None:
        return "—"
    rounded = f"{100 * share:.2f}"
    if rounded == "100.00" and share < 1:
        rounded = ">99.99"
    if rounded == "0.00" and share > 0:
        rounded = "<0.01"
    return f"{rounded}%"
