"""Draw a request log: requests and latencies over time, as SVG or PNG."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from embellama.records.stats import PERCENTS, all_of, percentiles
from embellama.records.tally import Group, Tally

# Parts of the time that are drawn apart.
SLOTS = 60

# Groups with a line of their own; more could not be told apart.
DRAWN = 6

# The percentile that is drawn for each group.
PERCENT = 95


def chart(counted: Tally, by: str, path: str) -> None:
    """Draw a tally that was counted in slots: one line for each of the largest groups, or p50, p95 and p99 of all.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    above = figure.add_subplot(2, 1, 1)
    below = figure.add_subplot(2, 1, 2, sharex=above)
    everything = all_of(counted.groups)
    n_slots = len(everything.n)
    width = counted.period.seconds / n_slots
    # Without the zone, in UTC: matplotlib would show that of the machine.
    since = counted.period.since.replace(tzinfo=None)
    times: Any = [since + datetime.timedelta(seconds=width * (i + 0.5)) for i in range(n_slots)]
    for group in counted.groups[:DRAWN] if by else [everything]:
        label = _label(group.name) if by else "all"
        above.plot(times, group.n / width, label=label)
        for percent in [PERCENT] if by else PERCENTS:
            below.plot(times, _over_time(group, percent), label=label if by else f"p{percent}")
    if np.any(everything.n > everything.n_good):
        above.plot(times, (everything.n - everything.n_good) / width, "--", color="tab:red", label="not answered well")
    above.set(ylabel="requests/s", ylim=(0, None))
    below.set(ylabel=f"p{PERCENT} (ms)" if by else "latency (ms)", ylim=(0, None), xlabel="UTC")
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    more = f", the {DRAWN} with the most requests" if by and len(counted.groups) > DRAWN else ""
    figure.suptitle(f"{everything.n.sum()} requests" + (f" by {by}{more}" if by else ""))
    figure.savefig(path)


def _over_time(group: Group, percent: float) -> Sequence[float]:
    """Return a percentile in each slot, NaN where no request was answered well."""
    if not len(group.bucket_ms):
        return [float("nan")] * len(group.n)
    [values] = percentiles(group.histogram, group.bucket_ms, [percent])
    return np.where(group.n_good > 0, values, np.nan).tolist()  # type: ignore[no-any-return]


def _label(name: str) -> str:
    # A label that begins with an underscore is left out of a legend; a dollar begins a formula.
    return (" " + name if name.startswith("_") else name).replace("$", r"\$") or "(none)"
