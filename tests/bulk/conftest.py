"""Runs of `embellama bulk` with a tiny model."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ["red", "green", "blue", "one", "two", "three", "a", "b", "c", "d"]
PROGRAM = "from embellama.cli.main import main; main(prog_name='embellama')"

Bulk = Callable[..., "subprocess.CompletedProcess[str]"]


def command(tiny_path: str, *arguments: str | Path) -> list[str]:
    """Return a command with settings that batch alike on every machine."""
    model = ["--model-path", tiny_path, "--workers", "2", "--n-threads", "1", "--compute", "llama"]
    return [sys.executable, "-c", PROGRAM, "bulk", *map(str, arguments), *model]


@pytest.fixture
def bulk(tiny_path: str) -> Bulk:
    """Run the command to its end."""

    def run(*arguments: str | Path, data: str | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(tiny_path, *arguments), input=data, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def texts(n: int, seed: int = 0) -> list[str]:
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(1, 30))) for _ in range(n)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
