"""The oldest Polars that is supported does what the newest does."""

import os
import re
import sys
from pathlib import Path

import polars

from tests.conftest import ROOT, run

# Made by `scripts/setup --dev`.
FOLDER = Path(sys.prefix) / "polars-oldest"


def test_expressions_work_with_the_oldest_polars() -> None:
    oldest = {*re.findall(r'"polars>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT), str(ROOT / "server")])}
    told = run(sys.executable, "-c", "import polars; print(polars.__version__)", env=environment)
    assert {told.stdout.strip()} == oldest != {polars.__version__}
    options = ("-q", "-n", "0", "-p", "no:cacheprovider")
    result = run(sys.executable, "-m", "pytest", *options, "tests/frames/test_polars.py", cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout
