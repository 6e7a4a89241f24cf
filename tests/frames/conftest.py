"""A tiny model behind an engine, and how many texts it computed."""

from collections.abc import Iterator
from typing import Any

import pytest

from embellama import EmbeddingEngine, EngineConfig
from embellama.pool import Pool


@pytest.fixture(scope="session")
def tiny_engine(tiny_path: str) -> Iterator[EmbeddingEngine]:
    config = EngineConfig(model_path=tiny_path, model_name="tiny", compute="llama", num_workers=2, max_batch_tokens=192)
    with EmbeddingEngine(config) as engine:
        yield engine


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each request that reached a model's threads, past caches and everything before."""
    counts: list[int] = []
    submit = Pool.submit

    def counting(self: Pool, tokens: Any, **options: Any) -> Any:
        counts.append(len(tokens))
        return submit(self, tokens, **options)

    monkeypatch.setattr(Pool, "submit", counting)
    return counts
