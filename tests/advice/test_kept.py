"""The last report of `embellama bench` is kept."""

from pathlib import Path

import pytest

from embellama.advice.kept import keep, kept
from tests.advice.sample import REPORT


def test_the_last_report_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept() is None
    keep(REPORT)
    found = kept()
    assert found is not None
    assert found.report == REPORT
    assert found.measured_at.endswith("+00:00")


def test_a_report_of_another_version_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep(REPORT)
    [path] = tmp_path.glob("embellama/bench-*")
    for text in ("", "{", '{"report": {}}', "\0"):
        path.write_text(text)
        assert kept() is None
