"""Trials of what computes a model, with programs of the tests in their place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embellama.gguf import amx, compute

SetTrial = Callable[[str], Path]


@pytest.fixture
def set_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetTrial:
    """Put a program in the place of the trials, of which none was made yet; return the file of its runs."""
    for module in (amx, compute):
        monkeypatch.setattr(module, "TRIAL", "trial_of_a_test")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    runs.touch()

    def set_to(program: str) -> Path:
        (tmp_path / "trial_of_a_test.py").write_text(f"open({str(runs)!r}, 'a').write('x')\n{program}\n")
        return runs

    return set_to
