"""One protocol under everything: back ends, and a back end around a back end."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from embellama_server.app import build_app
from embellama_server.application import build
from embellama_server.config import ServerConfig
from embellama_server.state import ServedModel, ServerState
from embellama_server.workers.dispatcher import Dispatcher

from embellama import EmbeddingEngine, EngineConfig
from embellama.backend import ANYONE, Backend, Caller, PoolState, RowsFuture
from embellama.batch import RowKind, Rows, Tokens
from embellama.config import EngineConfig as Config
from embellama.errors import DeadlineExceeded, EmbeddingFailed
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.options import EmbedOptions
from embellama.outputs import normalize
from embellama.pool import Pool
from tests.conftest import wait_until


class Counting(Backend[RowsFuture]):
    """Counts the texts that go to the back end inside, and may say something else of its state."""

    def __init__(self, inside: Backend[RowsFuture]):
        self._inside, self.n_texts, self.closed = inside, 0, False
        self.change: dict[str, Any] = {}

    @property
    def state(self) -> PoolState:
        return msgspec.structs.replace(self._inside.state, **self.change)

    def check_room(self, caller: Caller = ANYONE) -> None:
        self._inside.check_room(caller)

    def submit(self, tokens: Sequence[Tokens], **options: Any) -> RowsFuture:
        self.n_texts += len(tokens)
        return self._inside.submit(tokens, **options)

    def close(self) -> Awaitable[None] | None:
        self.closed = True
        return self._inside.close()


@pytest.fixture
def config(tiny_path: str) -> ServerConfig:
    return ServerConfig(model_path=tiny_path, num_workers=2, n_threads=1, max_batch_tokens=192).checked()


@pytest.fixture
def jobs(config: Config) -> Jobs:
    return Jobs(config, Weights(config, vocab_only=True))


@pytest.fixture
def pool(config: Config) -> Iterator[Pool]:
    pool = Pool(config, Weights(config))
    yield pool
    pool.close()


@contextlib.asynccontextmanager
async def dispatching(config: ServerConfig, jobs: Jobs) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher with its worker processes."""
    [canary] = jobs.tokenizer.encode(["red"]).tokens
    dispatcher = Dispatcher(config, 32, canary)
    dispatcher.start()
    try:
        await asyncio.to_thread(wait_until, lambda: dispatcher.state.status == "ok", "both workers are ready")
        yield dispatcher
    finally:
        await dispatcher.close()


def expected(engine_of: str) -> Rows:
    with EmbeddingEngine(EngineConfig(model_path=engine_of, model_name="tiny", num_workers=1)) as engine:
        return engine.embed_batch("tiny", ["red", "green blue"])


def test_a_back_end_goes_around_the_pool_of_threads(pool: Pool, jobs: Jobs, tiny_path: str) -> None:
    backend: Counting[concurrent.futures.Future[Rows]] = Counting(pool)
    backend.check_room()
    job = jobs.encode(["red", "green blue"])
    rows = backend.submit(job.tokens, kind=job.kind).result()
    np.testing.assert_allclose(job.finish(rows).vectors, expected(tiny_path), atol=1e-5)
    assert backend.n_texts == 2
    assert (backend.state.status, backend.state.n_ready, backend.state.n_open) == ("ok", 2, 0)


@pytest.mark.server
async def test_a_back_end_goes_around_the_pool_of_processes(config: ServerConfig, jobs: Jobs, tiny_path: str) -> None:
    async with dispatching(config, jobs) as dispatcher:
        backend: Counting[asyncio.Future[Rows]] = Counting(dispatcher)
        backend.check_room()
        job = jobs.encode(["red", "green blue"])
        rows = await backend.submit(job.tokens, kind=job.kind)
        np.testing.assert_allclose(job.finish(rows).vectors, expected(tiny_path), atol=1e-5)
        assert backend.n_texts == 2
        assert (backend.state.status, backend.state.n_ready, backend.state.n_open) == ("ok", 2, 0)
        assert len(backend.state.workers) == 2


def test_an_engine_computes_through_a_back_end_around_its_own(tiny_path: str) -> None:
    with EmbeddingEngine(EngineConfig(model_path=tiny_path, model_name="tiny", num_workers=1)) as engine:
        model = engine._models.get("tiny")
        counting = model.backend = Counting(model.backend)
        engine.embed_batch("tiny", ["red", "green"])
        engine.embed("tiny", "red")
        assert counting.n_texts == 3
        threads = threading.active_count()
        engine.unload_model("tiny")
        assert counting.closed
        assert threading.active_count() == threads - 1


@pytest.mark.server
async def test_the_server_asks_a_back_end_around_the_workers_how_they_are(config: ServerConfig) -> None:
    state = build(config)
    model = state.model(None)
    model.dispatcher.start()
    counting: Counting[asyncio.Future[Rows]] = Counting(model.dispatcher)
    # As it would be of a back end that has computed all it needs, and stops with a lot left to do.
    counting.change = {"n_ready": 0, "status": "unavailable", "waiting_tokens": 3000, "rate": 100.0}
    around = model._replace(backend=counting)
    around_all = ServerState(state.config, [around], state.metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(around_all)), base_url="http://test") as http:
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/health")).json()["status"] == "unavailable"
    assert around_all.overloaded("full").retry_after_s == 30
    await around.close(at_once=False)
    assert counting.closed
    assert model.dispatcher.n_ready == 0


def test_metrics_are_those_of_the_back_end(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def around(*args: Any) -> ServedModel:
        model = ServedModel(*args)
        counting: Counting[asyncio.Future[Rows]] = Counting(model.dispatcher)
        counting.change = {"n_workers": 17}
        return model._replace(backend=counting)

    monkeypatch.setattr("embellama_server.models.ServedModel", around)
    assert 'embellama_workers{model="tiny"} 17.0' in build(config).metrics.page().decode()


@pytest.mark.server
async def test_both_pools_name_the_text_at_fault_by_its_position(config: ServerConfig, jobs: Jobs, pool: Pool) -> None:
    tokens = jobs.encode(["red", "poison", "green"]).tokens
    with pytest.raises(EmbeddingFailed) as of_threads:
        pool.submit(tokens).result()
    async with dispatching(config, jobs) as dispatcher:
        with pytest.raises(EmbeddingFailed) as of_processes:
            await dispatcher.submit(tokens)
    assert of_threads.value.index == of_processes.value.index == 1


@pytest.mark.server
async def test_both_pools_keep_deadlines(config: ServerConfig, jobs: Jobs, pool: Pool) -> None:
    tokens = jobs.encode(["red " * 60] * 400, EmbedOptions(truncate="end")).tokens
    with pytest.raises(DeadlineExceeded):
        pool.submit(tokens, deadline=0.0).result()
    async with dispatching(config, jobs) as dispatcher:
        with pytest.raises(DeadlineExceeded):
            await dispatcher.submit(tokens, deadline=0.0)


@pytest.mark.server
async def test_both_pools_tell_progress(config: ServerConfig, jobs: Jobs, pool: Pool) -> None:
    tokens = jobs.encode(["red", "green", "blue"]).tokens
    seen: list[tuple[int, int]] = []
    pool.submit(tokens, progress=lambda *of: seen.append(of)).result()
    assert seen[-1] == (3, 3)
    seen.clear()
    async with dispatching(config, jobs) as dispatcher:
        await dispatcher.submit(tokens, progress=lambda *of: seen.append(of))
    assert seen[-1] == (3, 3)


@pytest.mark.server
async def test_both_pools_compute_each_kind_of_row_beside_the_others(
    config: ServerConfig, jobs: Jobs, pool: Pool
) -> None:
    tokens = jobs.encode(["red", "green blue", "one two three"] * 3).tokens
    of_threads = [future.result() for future in [pool.submit(tokens, kind=kind) for kind in RowKind]]
    async with dispatching(config, jobs) as dispatcher:
        of_processes = await asyncio.gather(*[dispatcher.submit(tokens, kind=kind) for kind in RowKind])
    for texts, pooled, of_tokens in (of_threads, of_processes):
        np.testing.assert_allclose(normalize(pooled), texts, atol=2e-3)
        means = [rows.mean(axis=0) for rows in np.split(of_tokens, np.cumsum([len(ids) for ids in tokens])[:-1])]
        np.testing.assert_allclose(pooled, means, atol=5e-3 * np.abs(pooled).max())
        assert np.abs(np.linalg.norm(pooled, axis=1) - 1).min() > 0.01
