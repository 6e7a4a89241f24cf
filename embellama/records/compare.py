"""Compare the requests of two models, or of two periods, and tell differences from noise.

two groups, counted in slots of time ──► slots drawn again at random, DRAWS times ──► an interval for each difference

Requests that come together are alike: they meet the same load. So not requests are drawn again but slots, whole ones: a
bootstrap of blocks (Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of
Statistics 17, 1989; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, chapters 2.4 and 8.2). Two
models of one period are drawn with the same slots, as they shared the hours of the day.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from embellama.errors import ConfigError
from embellama.records.period import last_days, parse_days
from embellama.records.stats import ADDED, PERCENTS, Figures, all_of, figures, percent, percentiles
from embellama.records.tally import Group, tally

# Slots of each period. With fewer, an interval is too narrow; with more, what lasts has no room in one.
SLOTS = 100

# Slots of each side that have requests, at least, for a verdict.
MIN_SLOTS = 30

# Requests that a figure rests on, at least: those that failed, or those above a percentile.
MIN_REQUESTS = 10

# The time in which models are compared.
DAYS = 7.0

DRAWS = 2000
CONFIDENCE = 0.95

Verdict = Literal["noise", "differs", "too few"]
Drawn = NDArray[np.float64]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of both sides.

    Attributes:
        figure: Its name in `Figures`.
        a: Of the first; None if there is none.
        b: Of the second.
        least: The difference, b - a, is at least that, with a confidence of 95%; None if nothing can be said.
        most: At most that.
        verdict: ``noise`` if 0 is between the two, ``differs`` if not; ``too few`` requests, or slots, to say.
    """

    figure: str
    a: float | None
    b: float | None
    least: float | None
    most: float | None
    verdict: Verdict


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of two models or periods.

    Attributes:
        a: Figures of the first; its name is the model, or the days.
        b: Of the second.
        differences: What is compared.
        unreadable_lines: Lines that are torn or are no lines of a request log.
    """

    a: Figures
    b: Figures
    differences: list[Difference]
    unreadable_lines: int


def compare(folder: str, a: str, b: str, last: float | None = None) -> Comparison:
    """Compare two models, or two periods.

    Args:
        folder: The folder of a request log.
        a: A model's name, or days: ``2026-11-20``, or ``2026-11-01..2026-11-07``.
        b: Another one of the kind.
        last: For models, how many days up to now; None for 7.

    Raises:
        ConfigError: There are no requests of one of them, or they are not of one kind; or as `tally`.
    """
    days = [parse_days(each) for each in (a, b)]
    if a == b:
        raise ConfigError(f"{a} would be compared with itself")
    if (days[0] is None) != (days[1] is None):
        raise ConfigError(f"{a} and {b} cannot be compared: give two models, or two periods")
    period = last_days(DAYS if last is None else last)
    if days[0] and days[1]:
        if last is not None:
            raise ConfigError(f"days is {last:g}, but {a} and {b} are periods")
        counted = [tally(folder, each, n_slots=SLOTS) for each in (days[0], days[1])]
        found = [all_of(each.groups) if each.groups else None for each in counted]
        # A file may have lines of both periods.
        n_unreadable = sum((counted[0].unreadable | counted[1].unreadable).values())
    else:
        models = tally(folder, period, "model", SLOTS)
        n_unreadable = models.n_unreadable
        found = [next((group for group in models.groups if group.name == name), None) for name in (a, b)]
    for name, group in zip((a, b), found, strict=True):
        if group is None:
            raise ConfigError(f"{name}: there are no requests of it" + ("" if days[0] else f" from {period}"))
    first, second = (group._replace(name=name) for name, group in zip((a, b), found, strict=True) if group)
    return Comparison(
        a=figures(first),
        b=figures(second),
        differences=differences(first, second, paired=days[0] is None),
        unreadable_lines=n_unreadable,
    )


def differences(a: Group, b: Group, *, paired: bool, seed: int = 0) -> list[Difference]:
    """Compare the figures of two groups that were counted in slots.

    Args:
        a: The first.
        b: The second.
        paired: Whether their slots are the same times.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    draws_a = _draws(random, len(a.n))
    draws_b = draws_a if paired else _draws(random, len(b.n))
    drawn_a, drawn_b = _drawn(a, draws_a), _drawn(b, draws_b)
    figures_a, figures_b = figures(a), figures(b)
    found = []
    for name in drawn_a:
        enough = _rests_on_enough(name, a, b)
        found.append(_difference(name, figures_a, figures_b, drawn_b[name] - drawn_a[name], enough=enough))
    return found


def _draws(random: np.random.Generator, n_slots: int) -> Drawn:
    """Draw slots again and again: how often each of them was drawn, ``(DRAWS, n_slots)``."""
    return random.multinomial(n_slots, [1 / n_slots] * n_slots, DRAWS).astype(np.float64)


def _drawn(group: Group, draws: Drawn) -> dict[str, Drawn]:
    """Return each figure as it would be in each draw, NaN where there is none."""
    sums = {name: draws @ getattr(group, name).astype(np.float64) for name in ADDED}
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "success_rate": sums["n_good"] / sums["n"],
            "average_ms": sums["total_ms"] / sums["n_good"],
            "cache_hit_rate": sums["n_cached_tokens"] / sums["n_tokens"],
        }
    if len(group.bucket_ms):
        for percent_, values in zip(PERCENTS, percentiles(sums["histogram"], group.bucket_ms), strict=True):
            found[f"p{percent_}_ms"] = np.where(sums["n_good"] > 0, values, np.nan)
    else:
        found |= {f"p{percent_}_ms": np.full(len(draws), np.nan) for percent_ in PERCENTS}
    return {name: found[name] for name in COMPARED}


COMPARED = ("success_rate", "average_ms", *(f"p{each}_ms" for each in PERCENTS), "cache_hit_rate")


def _rests_on_enough(figure: str, a: Group, b: Group) -> bool:
    """Tell whether there are enough requests, in enough slots, to say anything about a figure."""
    if min(np.count_nonzero(each.n) for each in (a, b)) < MIN_SLOTS:
        return False
    n_good = min(int(each.n_good.sum()) for each in (a, b))
    if figure == "success_rate":
        return sum(int(each.n.sum() - each.n_good.sum()) for each in (a, b)) >= MIN_REQUESTS
    share = {f"p{each}_ms": 1 - each / 100 for each in PERCENTS}.get(figure, 1.0)
    return n_good * share >= MIN_REQUESTS


def _difference(name: str, a: Figures, b: Figures, drawn: Drawn, *, enough: bool) -> Difference:
    values = getattr(a, name), getattr(b, name)
    drawn = drawn[np.isfinite(drawn)]
    if None in values or not enough or not len(drawn):
        return Difference(figure=name, a=values[0], b=values[1], least=None, most=None, verdict="too few")
    least, most = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    verdict: Verdict = "noise" if least <= 0 <= most else "differs"
    return Difference(figure=name, a=values[0], b=values[1], least=least, most=most, verdict=verdict)


def table(found: Comparison) -> list[str]:
    """Write a comparison as lines of text, for people."""
    cells = [["", found.a.name, found.b.name, "difference", "95% interval", ""]]
    cells.append(["requests", str(found.a.requests), str(found.b.requests), "", "", ""])
    cells += [_cells(each) for each in found.differences]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in cells]


def _cells(found: Difference) -> list[str]:
    written = _percent if found.figure.endswith("_rate") else _ms
    difference = interval = ""
    if found.a is not None and found.b is not None:
        difference = written(found.b - found.a, signed=True)
    if found.least is not None:
        interval = f"{written(found.least, signed=True)} to {written(found.most, signed=True)}"
    return [found.figure.replace("_", " "), written(found.a), written(found.b), difference, interval, found.verdict]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    ends = (0, len(row) - 1)
    return [
        cell.ljust(width) if i in ends else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _ms(value: float | None, *, signed: bool = False) -> str:
    return "—" if value is None else f"{value:{'+' if signed else ''}.1f}"


def _percent(value: float | None, *, signed: bool = False) -> str:
    return f"{100 * value:+.2f}%" if signed and value is not None else percent(value)
