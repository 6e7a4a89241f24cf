"""The numbers of docs/scale.md follow from where it says that they come from."""

import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "scale.md").read_text()


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table that begins with a header."""
    _, _, after = TEXT.partition(f"\n| {header}")
    lines = after.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def number(cell: str) -> float:
    return float(re.sub(r"[^0-9.]", "", cell))


@pytest.mark.parametrize("row", rows("machine, 2 cores"), ids=lambda row: f"{row[0]} {row[1]}")
def test_a_million_texts_cost_what_was_measured(row: list[str]) -> None:
    _, tokens, rate, hours, dollars, source = row
    [path] = re.findall(r"\((\S+)\)", source)
    measured = (ROOT / "docs" / path).read_text()
    table = re.search(rf"texts, {tokens} tokens each.*?\| embellama \| ([\d.]+)", measured, re.DOTALL)
    assert table
    assert float(table[1]) == number(rate)
    assert number(hours) == pytest.approx(1e6 / number(rate) / 3600, abs=0.001)
    assert number(dollars) == pytest.approx(0.10 * number(hours), abs=0.001)


@pytest.mark.parametrize("row", rows("rows a day"), ids=lambda row: row[0])
def test_a_days_cores_and_bytes_follow_from_its_rows(row: list[str]) -> None:
    words = {"million": 1e6, "billion": 1e9}
    n_rows = number(row[0]) * words[row[0].split()[1]]
    a_second = n_rows / 86400
    assert number(row[1]) == pytest.approx(a_second, abs=0.5)
    for cell, rate in zip(row[2:4], (1948.6, 223.7), strict=True):
        cores = a_second / (0.7 * 0.946 * rate / 2)
        assert number(cell) == pytest.approx(cores, rel=0.01, abs=1)
    units = {"GB": 1e9, "TB": 1e12}
    for cell, n_bytes in zip(row[4:], (4 * 384, 384), strict=True):
        assert number(cell) * units[cell.split()[1]] == pytest.approx(n_rows * n_bytes, rel=0.05)
