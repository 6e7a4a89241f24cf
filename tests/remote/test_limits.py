"""Rates are kept, by the server's clock."""

from pathlib import Path

import pytest

from embellama.errors import ConfigError
from embellama.remote.rate import Rate
from tests.bulk.conftest import texts
from tests.remote.conftest import StartFaulty, computed
from tests.remote.faulty import n_tokens


@pytest.mark.parametrize(("limit", "asked"), [("3000/m", 1), ("8000tokens/s", 8)])
def test_a_rate_is_kept_within_two_percent(faulty: StartFaulty, tmp_path: Path, limit: str, asked: int) -> None:
    server = faulty(delay_s=0.05)
    rate = Rate.parse(limit)
    n = 225 if rate.unit == "requests" else 2300
    computed(tmp_path, texts(n), server, max_batch_size=asked, rate_limit=(limit,), concurrency=16)
    first, *others = server.requests()
    amount = len(others) if rate.unit == "requests" else sum(n_tokens(each["texts"]) for each in others)
    took_s = max(each["at"] for each in others) - first["at"]
    assert took_s > 4
    # What a busy machine is late with is never made up for by more than two percent.
    assert 0.4 < amount / took_s / (rate.amount / rate.seconds) < 1.02  # a busy machine is late


@pytest.mark.parametrize("limit", ["10", "10/y", "0/s", "-1/s", "10 texts/s", "/s"])
def test_what_is_no_rate_is_named(limit: str) -> None:
    with pytest.raises(ConfigError, match=r"rate_limit is '.*; it must be as 10/s, 2000/m or 100000tokens/m"):
        Rate.parse(limit)
