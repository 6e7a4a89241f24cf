"""Runs of `embellama bulk` with a tiny model."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.forks import Ended, Fork, Forks, forks

WORDS = ["red", "green", "blue", "one", "two", "three", "a", "b", "c", "d"]

PROGRAM = "from embellama.cli.main import main; main(prog_name='embellama')"

Bulk = Callable[..., Ended]
StartBulk = Callable[..., Fork]


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as forked:
        yield forked


def bulk_of(forked: Forks, model_path: str) -> StartBulk:
    """Start the command with settings that batch alike on every machine."""
    model = ["--model-path", model_path, "--workers", "2", "--n-threads", "1", "--compute", "llama"]
    return lambda *arguments, **options: forked.start("bulk", *arguments, *model, **options)


@pytest.fixture
def start_bulk(forked: Forks, tiny_path: str) -> StartBulk:
    """Start the command."""
    return bulk_of(forked, tiny_path)


@pytest.fixture
def bulk(start_bulk: StartBulk) -> Bulk:
    """Run the command to its end."""
    return lambda *arguments, **options: start_bulk(*arguments, **options).wait()


def texts(n: int, seed: int = 0) -> list[str]:
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(1, 30))) for _ in range(n)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
