"""Differences between two groups of requests, and which of them are noise."""

import datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from embellama.errors import ConfigError
from embellama.records import compare as module
from embellama.records.compare import SLOTS, Comparison, compare, differences
from embellama.records.line import RequestLine
from embellama.records.period import parse_days
from embellama.records.tally import Group
from tests.records.conftest import DAY, line, write_log

# So long ago is the day that lines are of.
AGO = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(f"{DAY}T00:00:00+00:00")).days + 1.5


def verdicts(found: Comparison) -> dict[str, str]:
    return {each.figure: each.verdict for each in found.differences}


def traffic(seed: int, model: str, n: int = 3000, slower: float = 1.0, failing: float = 0.02) -> list[RequestLine]:
    """Make lines over an hour: the load goes up and down, and with it the latencies."""
    random = np.random.default_rng(seed)
    seconds = np.sort(random.uniform(0, 3600, n))
    load = 1 + np.repeat(random.random(36), 100)[seconds.astype(int)]
    times = (slower * load * np.exp(random.normal(3, 0.7, n))).round(3).tolist()
    status = np.where(random.random(n) < failing, 503, 200).tolist()
    cached = np.where(random.random(n) < 0.3, 5, 0).tolist()
    return [
        line(second, ms, code, model=model, n_cached_tokens=known)
        for second, ms, code, known in zip(seconds.tolist(), times, status, cached, strict=True)
    ]


def test_what_differs_is_told_from_noise(tmp_path: Path) -> None:
    write_log(tmp_path, [*traffic(1, "old"), *traffic(2, "new", slower=1.5)])
    found = compare(str(tmp_path), "old", "new", AGO)
    assert verdicts(found) == {
        "success_rate": "noise",
        "average_ms": "differs",
        "p50_ms": "differs",
        "p95_ms": "differs",
        "p99_ms": "differs",
        "cache_hit_rate": "noise",
    }
    [p50] = [each for each in found.differences if each.figure == "p50_ms"]
    assert None not in (p50.a, p50.b, p50.least, p50.most)
    assert p50.least <= p50.b - p50.a <= p50.most  # type: ignore[operator]


def test_periods_are_compared(tmp_path: Path) -> None:
    write_log(tmp_path, traffic(3, "minilm", failing=0.02))
    later = [
        msgspec.structs.replace(each, time=f"2025-03-21{each.time[10:]}") for each in traffic(4, "minilm", failing=0.1)
    ]
    path = write_log(tmp_path, later, day="2025-03-21")
    path.write_bytes(path.read_bytes() + b'{"v":1')
    found = compare(str(tmp_path), DAY, "2025-03-21")
    assert found.unreadable_lines == 1  # though the file is read for both days
    assert verdicts(found)["success_rate"] == "differs"
    assert verdicts(found)["p50_ms"] == "noise"
    assert (found.a.name, found.b.name, found.a.requests, found.b.requests) == (DAY, "2025-03-21", 3000, 3000)


def counts(random: np.random.Generator, n: int) -> Group:
    """Make a group whose load changes from slot to slot."""
    load = random.gamma(2, 0.5, SLOTS)
    per_slot = random.poisson(n / SLOTS * load)
    histogram = np.array([random.multinomial(k, _weights(each)) for k, each in zip(per_slot, load, strict=True)])
    bad = random.binomial(per_slot, 0.05)
    tokens = 10 * per_slot
    cached = random.binomial(tokens, 0.3)
    ms = np.exp(np.linspace(0, 6, 200))
    zero = np.zeros(SLOTS, np.int64)
    total = histogram @ ms
    return Group("", per_slot + bad, zero, per_slot, per_slot, tokens, cached, zero, total, histogram, ms, {})


def _weights(load: float) -> NDArray[np.float64]:
    weights = np.exp(-((np.linspace(0, 6, 200) - 3 - 0.3 * load) ** 2))
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def test_twins_seldom_differ() -> None:
    """Two groups of one kind, again and again: of the verdicts, about one in twenty may be wrong."""
    random = np.random.default_rng(5)
    pairs = [(counts(random, 5000), counts(random, 5000)) for _ in range(20)]
    found = [each.verdict for a, b in pairs for each in differences(a, b, paired=False)]
    assert found.count("too few") == 0
    assert found.count("differs") / len(found) < 0.12


@pytest.mark.parametrize("what", ["few requests", "a short time"])
def test_nothing_is_said_of_too_few(tmp_path: Path, what: str) -> None:
    if what == "few requests":
        lines = [line(60 * i, 1 + 50 * (i % 2), model=("a", "b")[i % 2]) for i in range(40)]
    else:
        lines = [line(100 * (i % 10), 1 + 50 * (i % 2), model=("a", "b")[i % 2]) for i in range(4000)]
    write_log(tmp_path, sorted(lines, key=lambda each: each.time))
    found = compare(str(tmp_path), "a", "b", AGO)
    assert {*verdicts(found).values()} == {"too few"}


def test_sides_without_success_have_no_latency(tmp_path: Path) -> None:
    lines = [line(i, status=503, model=("a", "b")[i % 2]) for i in range(400)]
    write_log(tmp_path, lines)
    found = compare(str(tmp_path), "a", "b", AGO)
    assert verdicts(found) == {
        "success_rate": "noise",
        **dict.fromkeys(("average_ms", "p50_ms", "p95_ms", "p99_ms", "cache_hit_rate"), "too few"),
    }
    assert "—" in "\n".join(module.table(found))


@pytest.mark.parametrize(
    ("a", "b", "last", "told"),
    [
        ("minilm", "other", AGO, "other: there are no requests of it from"),
        ("minilm", "other", 0.001, "minilm: there are no requests of it from"),
        (DAY, "2025-03-25", None, "2025-03-25: there are no requests of it$"),
        (DAY, "minilm", None, "give two models, or two periods"),
        ("minilm", "minilm", None, "compared with itself"),
        (DAY, "2025-03-21", 3, "days is 3, but 2025-03-20 and 2025-03-21 are periods"),
        ("2026-02-30", "2025-03-21", None, "2026-02-30: there is no such day"),
        ("2026-11-05..2026-11-01", DAY, None, "the first day comes after the last"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path: Path, a: str, b: str, last: float | None, told: str) -> None:
    write_log(tmp_path, [line()])
    with pytest.raises(ConfigError, match=told):
        compare(str(tmp_path), a, b, last)


def test_days_are_read_with_both_ends() -> None:
    period = parse_days("2026-11-01..2026-11-07")
    assert period
    assert period.seconds == 7 * 86_400
    assert parse_days("minilm") is None
    assert parse_days("2026-11-01..") is None
