"""How far a run is: a bar on a terminal, lines elsewhere."""

import io
import re
import sys

import pytest

from embellama.bulk import progress
from embellama.bulk.manifest import Counts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress() as bar:
        assert isinstance(bar, progress.Bar)
        bar.note("a note")
        bar.update(Counts(rows=10, tokens=70), 0.25)
        bar.update(Counts(rows=20, failed=1, tokens=140), 0.5)
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue())
    assert "a note\n" in drawn
    assert re.search(r"━+ +20 rows, \d+/s, 140 tokens, 1 failed, 50%, \d+:\d\d left", drawn)


def test_elsewhere_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    with progress.progress() as log:
        log.update(Counts(rows=10, tokens=70), None)
    assert re.fullmatch(r"10 rows, \d+/s, 70 tokens, 0 failed\n", said.getvalue())
