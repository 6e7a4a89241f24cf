"""What is counted of a request log's lines, whatever else is in its files."""

import collections
import math
import os
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama.errors import ConfigError
from embellama.records.line import RequestLine
from embellama.records.period import parse_days
from embellama.records.stats import figures, stats
from embellama.records.tally import GROUPINGS, Tally, tally
from tests.records.conftest import DAY, line, write_log

PERIOD = parse_days(DAY)
assert PERIOD


def counted(folder: Path, by: str = "", n_slots: int = 1) -> Tally:
    assert PERIOD
    return tally(str(folder), PERIOD, by, n_slots)


LINES = st.builds(
    line,
    seconds=st.floats(0, 86_399),
    total_ms=st.floats(0, 1e6).map(lambda ms: round(ms, 3)),
    status=st.sampled_from([200, 200, 200, 0, 400, 429, 503]),
    error=st.sampled_from(["", "overloaded"]),
    model=st.sampled_from(["", "minilm", "größer", "it's"]),
    key=st.sampled_from(["", "alice"]),
    client=st.sampled_from(["10.0.0.1", "::1"]),
    n_tokens=st.integers(0, 300_000),
    n_cached_tokens=st.integers(0, 100),
    n_retries=st.integers(0, 2),
    hashes=st.lists(st.just("0123456789abcdef"), max_size=3),
    texts=st.lists(st.text(max_size=20), max_size=2),
)


@settings(max_examples=25, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=40), by=st.sampled_from(GROUPINGS), n_slots=st.sampled_from([1, 7]))
def test_figures_are_those_of_the_lines(lines: list[RequestLine], by: str, n_slots: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), lines)
        found = stats(counted(Path(folder), by, n_slots), by)
    groups = collections.defaultdict(list)
    for each in lines:
        groups[str(getattr(each, by))].append(each)
    assert {group.name: group.requests for group in found.groups} == {name: len(own) for name, own in groups.items()}
    for group in (*found.groups, found.total):
        own = lines if group is found.total else groups[group.name]
        good = [each for each in own if each.status == 200]
        assert group.requests == len(own)
        assert group.success_rate == len(good) / len(own)
        assert group.retries == sum(each.n_retries > 0 for each in own)
        assert group.tokens == sum(each.n_tokens for each in good)
        codes = [each.error or ("client_gone" if not each.status else str(each.status)) for each in own]
        expected = collections.Counter(code for code, each in zip(codes, own, strict=True) if each.status != 200)
        assert group.errors == expected
        if not good:
            assert (group.average_ms, group.p50_ms, group.cache_hit_rate) == (None, None, None)
            continue
        times = [each.total_ms for each in good]
        assert group.average_ms == pytest.approx(np.mean(times), abs=0.001)
        exact = np.percentile(times, [50, 95, 99], method="inverted_cdf")
        assert [group.p50_ms, group.p95_ms, group.p99_ms] == pytest.approx(exact, rel=0.005, abs=0.001)


def test_percentiles_are_within_half_a_percent_of_exact_ones(tmp_path: Path) -> None:
    times = np.exp(np.random.default_rng(1).normal(3, 2, 20_000)).round(3)
    write_log(tmp_path, [line(i, each) for i, each in enumerate(times.tolist())])
    [group] = counted(tmp_path).groups
    found = figures(group)
    exact = np.percentile(times, [50, 95, 99])
    assert [found.p50_ms, found.p95_ms, found.p99_ms] == pytest.approx(exact, rel=0.005)
    assert found.average_ms == pytest.approx(times.mean(), abs=0.001)


def test_slots_add_up_to_the_whole(tmp_path: Path) -> None:
    write_log(tmp_path, [line(100 + i, model=f"m{i % 3}", n_tokens=i) for i in range(1000)])
    whole, parts = counted(tmp_path, "model").groups, counted(tmp_path, "model", 10).groups
    for one, many in zip(whole, parts, strict=True):
        assert figures(one) == figures(many)
        assert np.ptp(many.n) <= 1  # all parts of the time that has lines are alike


FOREIGN = [
    b"hello world",
    b"[1, 2]",
    b"42",
    b'"text"',
    b"{}",
    b'{"v": 2, "time": "2025-03-20T00:00:00.000Z", "status": 200, "total_ms": 1}',
    b'{"v": 1, "time": "never", "status": 200, "total_ms": 1}',
    b'{"v": 1, "time": "2025-03-20T00:00:00.000Z", "status": "good", "total_ms": 1}',
    b'{"v": 1, "time": "2025-03-20T00:00:00.000Z", "status": 99999, "total_ms": 1}',
    b'{"v": 1, "time": "2025-03-20T00:00:00.000Z", "status": 200, "total_ms": -1}',
    b'{"v": 1, "time": "2025-03-20T00:00:00.000Z", "status": 200, "total_ms": 1e999}',
    b'{"v": 1, "time": "2025-03-20T00:00:00.000Z", "status": 200}',
    b"\xff\xfe{",
    b"\0\0\0\0",
    b'{"v": 1}{"v": 1}',
]


def test_lines_of_others_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_log(tmp_path, [line(i) for i in range(3)])
    path.write_bytes(b"\n".join([*FOREIGN, b"", *path.read_bytes().split(b"\n"), *FOREIGN]))
    other = write_log(tmp_path, [], process="f" * 16)
    other.write_text("not ours\n")
    found = counted(tmp_path, "model")
    assert [group.n.sum() for group in found.groups] == [3]
    assert found.unreadable == {str(path): 2 * len(FOREIGN), str(other): 1}
    assert found.n_unreadable == 2 * len(FOREIGN) + 1


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 200))
def test_a_line_that_a_kill_has_cut_costs_no_other(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_log(Path(folder), [line(i) for i in range(5)])
        torn = msgspec.json.encode(line(6))[:-1]
        path.write_bytes(path.read_bytes() + torn[:cut])
        write_log(Path(folder), [line(9)], process="f" * 16)
        found = counted(Path(folder))
    assert (found.groups[0].n.sum(), found.n_unreadable) == (6, 1)


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = write_log(tmp_path, [line(i) for i in range(5)])
    path.write_bytes(path.read_bytes()[:-1])
    assert counted(tmp_path).groups[0].n.sum() == 5


def test_only_files_and_times_of_the_period_are_read(tmp_path: Path) -> None:
    write_log(tmp_path, [line(-0.001), line(0), line(86_399.999), line(86_400)])
    write_log(tmp_path, [line(0)], day="2025-03-10")
    (tmp_path / "requests-2025-03-20.jsonl").write_text("not ours\n")
    (tmp_path / "requests-2026-13-45-0123456789abcdef.jsonl").write_text("no such day\n")
    found = counted(tmp_path)
    assert (found.groups[0].n.sum(), found.n_unreadable) == (2, 0)


@pytest.mark.parametrize("name", ["a[b]*c?", "größer", "it's", "with space", "x{y}"])
def test_any_name_of_a_folder_is_read(tmp_path: Path, name: str) -> None:
    write_log(tmp_path / name, [line()])
    assert counted(tmp_path / name).groups[0].n.sum() == 1


def test_a_line_as_long_as_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    write_log(tmp_path, [line()]).write_bytes(b"x" * 40_000_000)
    with pytest.raises(ConfigError, match=r"cannot be read: .*0123456789abcdef\.jsonl") as told:
        counted(tmp_path)
    assert "\n" not in str(told.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing cannot be read: No such file"):
        counted(tmp_path / "missing")
    with pytest.raises(ConfigError, match="has no files of a request log"):
        counted(tmp_path)
    if os.geteuid():
        tmp_path.chmod(0)
        with pytest.raises(ConfigError, match="Permission denied"):
            counted(tmp_path)


def test_no_requests_give_no_groups(tmp_path: Path) -> None:
    write_log(tmp_path, [])
    assert counted(tmp_path).groups == []
    write_log(tmp_path, [line(status=503)])
    [group] = counted(tmp_path).groups
    assert (group.errors, figures(group).p99_ms) == ({"503": 1}, None)
    assert not math.isnan(figures(group).success_rate)
