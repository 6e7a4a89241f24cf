"""Time for slow layers."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def patience() -> Iterator[None]:
    """Wait for slow layers for as long as they take: how fast this machine is now decides nothing."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("embellama.cache.backend.READ_S", 60.0)
        yield
