"""The cache in a server: answers, headers, metrics, restarts; beside a server that has none."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.cache.mixed import Known, Mixed, as_lines
from tests.conftest import BIN, Server, StartServer, run, running_server, wait_until
from tests.programs import RedisServer

pytestmark = pytest.mark.server

SHARED = ("--workers", "2", "--max-batch-tokens", "192")


@pytest.fixture(scope="module")
def known(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    log = tmp_path_factory.mktemp("reference") / "log"
    with running_server(log, "--model-path", tiny_path, *SHARED, "--cache-bytes", "0") as server:
        assert "cache" not in httpx.get(f"{server.url}/health").json()
        yield Known(server.url, 60, 3)


def embed(server: Server, *texts: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": texts, **options}, timeout=60)


def layers(server: Server) -> Any:
    return httpx.get(f"{server.url}/health").json()["cache"]


def test_a_text_that_is_known_is_not_computed_again(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, *SHARED) as server:
        first, second = embed(server, "red", "green blue"), embed(server, "green blue", "one", "green blue")
        cached = [int(answer.headers["x-embellama-cached-tokens"]) for answer in (first, second)]
        assert cached == [0, 8]
        assert second.json()["usage"]["total_tokens"] == 11
        rows = [item["embedding"] for answer in (first, second) for item in answer.json()["data"]]
        assert rows[1] == rows[2] == rows[4]
        # All dialects and encodings share an entry, of which short vectors are made too.
        short = embed(server, "red", dimensions=8)
        np.testing.assert_allclose(
            short.json()["data"][0]["embedding"], np.array(rows[0][:8]) / np.linalg.norm(rows[0][:8]), rtol=1e-5
        )
        answer = httpx.post(f"{server.url}/embed", json={"inputs": "red"})
        assert answer.headers["x-embellama-cached-tokens"] == "3"
        body = {"model": "tiny", "input": ["red"] * 9}
        lines = httpx.post(f"{server.url}/v1/embeddings", json=body, headers={"accept": "application/x-ndjson"})
        assert lines.text.count('"index"') == 9
        assert "x-embellama-cached-tokens" not in lines.headers
        found = layers(server)
        assert found.keys() == {"memory"}
        assert (found["memory"]["hits"], found["memory"]["misses"]) == (13, 3)
        page = httpx.get(f"{server.url}/metrics").text
        assert 'embellama_cache_hits_total{layer="memory",model="tiny"} 13.0' in page
        assert f'embellama_cache_bytes{{layer="memory",model="tiny"}} {found["memory"]["bytes"]}.0' in page


def test_a_layer_that_cannot_be_used_ends_the_start(tiny_path: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    path.write_text("not a database, but longer than the head of one is. " * 20)
    result = run(BIN / "embellama-server", "--model-path", tiny_path, "--port", "0", "--cache-file", path)
    assert result.returncode == 1
    assert f"cache_file is '{path}', which cannot be used" in result.stderr


@pytest.mark.timeout(180)
def test_mixed_requests_get_the_answers_of_a_server_without_a_cache(
    start_server: StartServer, tiny_path: str, tmp_path: Path, known: Known, redis_server: RedisServer
) -> None:
    flags = ("--cache-bytes", "40000", "--cache-file", str(tmp_path / "rows.sqlite"), "--redis-url", redis_server.url)

    async def asked(server: Server) -> Mixed:
        mixed = Mixed(server.url, known)
        asking = asyncio.create_task(mixed.ask(600, 8))
        disturbances = [
            lambda: random.choice(server.workers()).kill(),
            redis_server.stop,
            redis_server.go_on,
            redis_server.kill,
            redis_server.start,
        ]
        for n, disturb in enumerate(disturbances, 1):
            while mixed.seen.total() < 100 * n and not asking.done():  # noqa: ASYNC110 - it tells nobody else
                await asyncio.sleep(0.005)
            await asyncio.to_thread(disturb)
        await asking
        return mixed

    with start_server("--model-path", tiny_path, *SHARED, *flags) as server:
        mixed = asyncio.run(asked(server))
        assert not mixed.wrong, (as_lines(mixed), mixed.wrong[:3])
        assert mixed.n_cached > mixed.n_tokens / 3, as_lines(mixed)
        assert layers(server)["memory"]["evictions"] > 0
        assert layers(server)["sqlite"]["hits"] > 0
        wait_until(lambda: httpx.get(f"{server.url}/health").json()["waiting"]["requests"] == 0, "nothing waits")
