"""Many callers at once: threads, tasks, cancellation, progress, streams, memory, and the end of a process."""

import asyncio
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embellama import (
    EmbeddingEngine,
    EmbeddingFailed,
    EmptyInput,
    EngineConfig,
    InputError,
    InvalidText,
    ModelNotFound,
    Unavailable,
)
from embellama.gguf.header import Header
from embellama.pool import Pool
from embellama.registry import LoadedModel
from embellama.runner import JobRunner
from tests.conftest import Reference, run, wait_until
from tests.forward import pooled
from tests.tiny import ARCHITECTURES, write_bert


def tiny(path: str | Path, name: str = "tiny", num_workers: int = 2, **settings: object) -> EngineConfig:
    # More threads only wait for each other on so little work, and known rows are none.
    settings = {"n_threads": 1, "cache_bytes": 0, **settings}
    return EngineConfig(model_path=str(path), model_name=name, num_workers=num_workers, **settings)  # type: ignore[arg-type]


def pool_of(engine: EmbeddingEngine, name: str = "tiny") -> Pool:
    pool = engine._models.get(name).backend
    assert isinstance(pool, Pool)
    return pool


@pytest.fixture
def engine(tiny_path: str) -> Iterator[EmbeddingEngine]:
    """One tiny model on two threads, with batches of a few texts."""
    with EmbeddingEngine(tiny(tiny_path, max_batch_tokens=32)) as engine:
        yield engine


# ---- threads and tasks


@pytest.mark.model
def test_many_threads_get_their_own_vectors(reference: Reference, model_path: str) -> None:
    with EmbeddingEngine(tiny(model_path)) as engine:

        def embed(i: int) -> float:
            i %= len(reference.texts)
            return float(engine.embed(None, reference.texts[i]) @ reference.vectors[i])

        with ThreadPoolExecutor(16) as threads:
            assert min(threads.map(embed, range(120))) > 0.999


@pytest.mark.model
async def test_tasks_get_their_own_vectors(reference: Reference, model_path: str) -> None:
    with EmbeddingEngine(tiny(model_path)) as engine:
        single = await asyncio.gather(*(engine.aembed(None, text) for text in reference.texts[:20]))
        batch = await engine.aembed_batch(None, reference.texts[:20])
    for rows in (np.array(single), batch):
        assert np.sum(rows * reference.vectors[:20], axis=1).min() > 0.999


class Crowd:
    """Threads and tasks that ask two models for known vectors, while models come and go."""

    # What each asks, again and again, in an order of its own.
    TEXTS = ("red", "green blue", "one two three red", "a b c d e f g", "blue " * 40)
    N_THREADS, N_TASKS, N_CALLS = 16, 4, 40

    def __init__(self, engine: EmbeddingEngine, paths: dict[str, Path]):
        self.engine = engine
        self.seen: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.failures: list[str] = []
        self._expected = {name: [self._vector(name, path, text) for text in self.TEXTS] for name, path in paths.items()}
        self._names = list(paths)

    def _vector(self, name: str, path: Path, text: str) -> NDArray[np.float64]:
        row = pooled(path, self.engine.tokenize(name, [text]).tokens[0])
        return np.asarray(row / np.linalg.norm(row))

    def run(self) -> None:
        done = threading.Event()
        troublemakers = [
            threading.Thread(target=trouble, args=(done,)) for trouble in (self._reload, self._come_and_go)
        ]
        for thread in troublemakers:
            thread.start()
        with ThreadPoolExecutor(self.N_THREADS) as threads:
            callers = [threads.submit(self._call, seed) for seed in range(self.N_THREADS)]
            asyncio.run(self._tasks())
            for caller in callers:
                caller.result()
        done.set()
        for thread in troublemakers:
            thread.join()

    def _call(self, seed: int) -> None:
        for name, picked in self._choices(seed):
            try:
                self._check(name, picked, self.engine.embed_batch(name, [self.TEXTS[i] for i in picked]))
            except ModelNotFound:
                self._count(f"{name} was away")

    async def _tasks(self) -> None:
        async def call(seed: int) -> None:
            for name, picked in self._choices(seed):
                try:
                    rows = await self.engine.aembed_batch(name, [self.TEXTS[i] for i in picked])
                    self._check(name, picked, rows)
                except ModelNotFound:
                    self._count(f"{name} was away")

        await asyncio.gather(*(call(100 + seed) for seed in range(self.N_TASKS)))

    def _choices(self, seed: int) -> Iterator[tuple[str, list[int]]]:
        choose = np.random.default_rng(seed)
        for _ in range(self.N_CALLS):
            yield str(choose.choice(self._names)), choose.integers(0, len(self.TEXTS), choose.integers(1, 6)).tolist()

    def _check(self, name: str, picked: list[int], rows: NDArray[Any]) -> None:
        cosines = np.sum(rows * [self._expected[name][i] for i in picked], axis=1)
        self._count(name)
        if len(rows) != len(picked) or cosines.min() < 0.9999:
            self.failures.append(f"{name} {picked}: {cosines}")

    def _count(self, what: str) -> None:
        with self._counting:
            self.seen[what] += 1

    def _reload(self, done: threading.Event) -> None:
        while not done.is_set():
            self.engine.reload_model("stays")

    def _come_and_go(self, done: threading.Event) -> None:
        name = "comes and goes"
        config = self.engine._models.get(name).config
        while not done.is_set():
            n_seen = self.seen[name]  # so that it is not away all the time
            wait_until(lambda n=n_seen: self.seen[name] > n or done.is_set(), "it was asked")  # type: ignore[misc]
            self.engine.unload_model(name)
            self.engine.load_model(config)


@pytest.mark.parametrize("room", [2, 1])
def test_16_threads_and_4_tasks_get_right_vectors_while_models_come_and_go(tmp_path: Path, room: int) -> None:
    before = threading.active_count()
    paths = {
        "stays": write_bert(tmp_path / "stays.gguf", gain=0.3),
        "comes and goes": ARCHITECTURES["bert-cls"].write(tmp_path / "comes.gguf"),
    }
    n_bytes = Header(str(paths["stays"])).n_bytes
    with EmbeddingEngine(max_model_bytes=room * n_bytes) as engine:
        for name, path in paths.items():
            engine.load_model(tiny(path, name))
        crowd = Crowd(engine, paths)
        crowd.run()
    assert not crowd.failures
    assert crowd.seen.total() == (crowd.N_THREADS + crowd.N_TASKS) * crowd.N_CALLS
    assert crowd.seen["stays"] > 100
    assert crowd.seen["comes and goes"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(tuple(paths))]
    assert threading.active_count() == before


def test_unloading_answers_what_was_asked_before(tiny_path: str) -> None:
    engine = EmbeddingEngine(tiny(tiny_path))
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(engine.embed_batch, "tiny", ["red blue green"] * 500) for _ in range(4)]
        wait_until(lambda: any(call.running() for call in calls), "a call runs")
        engine.close()
        for call in calls:
            # A call that came too late is told so; none is lost.
            assert isinstance(call.exception(), ModelNotFound | Unavailable | None)


def test_a_call_runs_on_while_another_model_is_loaded_or_unloaded(engine: EmbeddingEngine, tiny_path: str) -> None:
    engine.load_model(tiny(tiny_path, "other"))
    with engine._models._loading:  # as while a large model is loaded, or waits for room
        assert engine.embed("tiny", "red").shape == (32,)
        assert engine.model_info("tiny").dim == 32
        engine.default_model = "other"
        engine.unload_model("other")
    with engine._models._loading, engine._models._lock:
        assert engine.embed("tiny", "red").shape == (32,)


@pytest.mark.parametrize("end", ["unload", "close"])
def test_a_model_that_went_while_it_was_loaded_leaves_nothing(
    tiny_path: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    engine = EmbeddingEngine(tiny(tiny_path))
    load = LoadedModel.__init__

    def load_and_go(model: LoadedModel, config: Any) -> None:
        load(model, config)
        engine.unload_model("tiny") if end == "unload" else engine.close()

    monkeypatch.setattr(LoadedModel, "__init__", load_and_go)
    with pytest.raises(ModelNotFound if end == "unload" else Unavailable):
        engine.reload_model("tiny")
    engine.close()
    assert threading.active_count() == before


def test_a_model_that_makes_room_keeps_nobody_else_waiting(tiny_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddingEngine(tiny(tiny_path, "a"), max_model_bytes=Header(tiny_path).n_bytes) as engine:
        may_close, closing, close = threading.Event(), threading.Event(), LoadedModel.close

        def close_late(model: LoadedModel) -> None:
            closing.set()
            assert may_close.wait(60)
            close(model)

        monkeypatch.setattr(LoadedModel, "close", close_late)
        with ThreadPoolExecutor(2) as threads:
            loading = threads.submit(engine.load_model, tiny(tiny_path, "b"))
            assert closing.wait(60)
            try:
                threads.submit(setattr, engine, "default_model", "a").result(10)
                assert not engine.model_info("a").loaded
            finally:
                may_close.set()
            loading.result()


# ---- cancellation


async def test_cancelling_a_call_drops_its_queued_work(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path)) as engine:
        pool = pool_of(engine)
        calls = [asyncio.ensure_future(engine.aembed_batch("tiny", ["red " * 60] * 2000)) for _ in range(4)]
        await asyncio.to_thread(wait_until, lambda: pool.state.n_open == len(calls), "every call waits")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (pool.state.n_open, pool.state.n_waiting) == (0, 0)
        assert engine.embed("tiny", "red").shape == (32,)


async def test_cancelling_a_call_before_it_is_queued_drops_it_too(
    engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, read_on, submitted = threading.Event(), threading.Event(), threading.Event()
    submit = JobRunner._submit

    def watched(*arguments: Any) -> Any:
        answer = submit(*arguments)
        submitted.set()
        return answer

    def texts() -> Iterator[str]:
        reading.set()
        read_on.wait()
        yield from ["red " * 60] * 3000

    monkeypatch.setattr(JobRunner, "_submit", watched)
    call = asyncio.ensure_future(engine.aembed_batch("tiny", texts()))
    await asyncio.to_thread(reading.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    read_on.set()
    await asyncio.to_thread(submitted.wait)
    # Otherwise its 3,000 texts would be computed for nobody, and this text after some of them.
    await asyncio.to_thread(wait_until, lambda: pool_of(engine).state.n_open == 0, "nothing is left")
    await engine.aembed("tiny", "red")


async def test_a_timeout_ends_one_call_and_no_other(engine: EmbeddingEngine) -> None:
    other = asyncio.ensure_future(engine.aembed_batch("tiny", ["red", "blue"] * 500))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.aembed_batch("tiny", ["red " * 60] * 5000), 0.01)
    assert (await other).shape == (1000, 32)
    await asyncio.to_thread(wait_until, lambda: pool_of(engine).state.n_open == 0, "nothing is left")


# ---- progress


@pytest.mark.parametrize("num_workers", [1, 4])
def test_progress_is_told_in_order_one_at_a_time_and_to_the_end(tiny_path: str, num_workers: int) -> None:
    told: list[tuple[int, int]] = []
    busy, clashes = threading.Lock(), []

    def progress(done: int, n: int) -> None:
        if not busy.acquire(blocking=False):
            clashes.append(done)
            return
        told.append((done, n))
        busy.release()

    with EmbeddingEngine(tiny(tiny_path, num_workers=num_workers, max_batch_tokens=16)) as engine:
        for _ in range(5):
            told.clear()
            engine.embed_batch("tiny", ["red green"] * 300, progress=progress)
            assert told[-1] == (300, 300)
            assert told == sorted(set(told))
            assert len(told) > 20
    assert not clashes


async def test_progress_is_told_to_asyncio_callers_too(engine: EmbeddingEngine) -> None:
    told: list[int] = []
    rows = await engine.aembed_batch("tiny", ["red"] * 100, progress=lambda done, n: told.append(done))
    assert rows.shape == (100, 32)
    assert told[-1] == 100
    assert (await engine.aembed_batch("tiny", [], progress=lambda done, n: told.append(-1))).shape == (0, 32)
    assert told[-1] == 100


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_progress_callback_that_fails_is_logged_once_and_costs_nothing(
    engine: EmbeddingEngine, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def progress(done: int, n: int) -> None:
        raise error("no")

    rows = engine.embed_batch("tiny", ["red", "blue"] * 100, progress=progress)
    np.testing.assert_allclose(rows[-2:], engine.embed_batch("tiny", ["red", "blue"]), atol=2e-4)
    assert [record.getMessage() for record in caplog.records] == ["a progress callback failed; it is not called again"]


def test_a_progress_callback_cannot_make_the_engine_wait_for_itself(tiny_path: str) -> None:
    refused: list[type[BaseException]] = []
    engine = EmbeddingEngine(tiny(tiny_path, num_workers=1))
    config = tiny(tiny_path, "third")

    def progress(done: int, n: int) -> None:
        for use in (
            lambda: engine.embed("tiny", "red"),
            lambda: engine.embed("other", "red"),
            lambda: engine.tokenize("tiny", ["red"]),
            lambda: engine.load_model(config),
            lambda: engine.reload_model("tiny"),
            lambda: engine.unload_model("tiny"),
            engine.close,
        ):
            with pytest.raises(InputError, match="a progress callback cannot use the engine") as caught:
                use()
            refused.append(caught.type)

    with engine:
        engine.load_model(tiny(tiny_path, "other", num_workers=1))
        engine.embed_batch("tiny", ["red"], progress=progress)
        assert len(refused) == 7


# ---- streams


class Source:
    """Endless texts that know how many were read."""

    def __init__(self, *faults: tuple[int, str]):
        self.n_read = 0
        self._faults = dict(faults)

    def __iter__(self) -> Iterator[str]:
        while True:
            self.n_read += 1
            yield self._faults.get(self.n_read - 1, ("red", "green blue", "one two three")[self.n_read % 3])


@pytest.mark.parametrize("n_ahead", [1, 2, 3, 5, 16, 100])
def test_a_stream_is_read_no_further_ahead_than_allowed(engine: EmbeddingEngine, n_ahead: int) -> None:
    source = Source()
    stream = engine.embed_stream("tiny", source, n_ahead=n_ahead)
    for n_yielded in range(1, 250):
        next(stream)
        assert source.n_read - n_yielded < n_ahead
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("n_ahead", [1, 7, 1000])
def test_a_stream_gives_each_text_its_vector_in_order(engine: EmbeddingEngine, n_ahead: int) -> None:
    texts = ["red", "green " * 20, "blue one", "two " * 50, "three"] * 20
    rows = list(engine.embed_stream("tiny", iter(texts), n_ahead=n_ahead))
    np.testing.assert_allclose(rows, engine.embed_batch("tiny", texts), atol=2e-4)
    assert list(engine.embed_stream("tiny", [], n_ahead=n_ahead)) == []


def test_a_stream_left_half_way_takes_its_queued_work_with_it(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path, num_workers=1)) as engine:
        for row in engine.embed_stream("tiny", ("red " * 60 for _ in range(10**9)), n_ahead=400):
            assert row.shape == (32,)
            break
        # The loop's generator is gone, and the 300 texts it had at work with it.
        assert pool_of(engine).state.n_open == 0


@pytest.mark.parametrize(
    ("fault", "error"), [("", EmptyInput), ("poison", EmbeddingFailed), (None, InvalidText), ("a\ud800", InvalidText)]
)
def test_an_error_in_a_stream_names_the_text_by_its_position(
    engine: EmbeddingEngine, fault: str, error: type[Exception]
) -> None:
    stream = engine.embed_stream("tiny", Source((777, fault)), n_ahead=40)
    rows: list[NDArray[Any]] = []
    with pytest.raises(error, match="text 777") as caught:
        rows.extend(stream)
    assert caught.value.index == 777  # type: ignore[attr-defined]
    assert 777 - 40 <= len(rows) <= 777
    assert pool_of(engine).state.n_open == 0
    assert next(stream, None) is None


def test_an_error_of_the_source_ends_a_stream_and_its_work(engine: EmbeddingEngine) -> None:
    def texts() -> Iterator[str]:
        yield from ["red"] * 100
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.embed_stream("tiny", texts(), n_ahead=50))
    assert pool_of(engine).state.n_open == 0


def test_a_stream_outlives_reloading_and_ends_with_unloading(engine: EmbeddingEngine) -> None:
    stream = engine.embed_stream("tiny", Source(), n_ahead=8)
    first = [next(stream) for _ in range(10)]
    engine.reload_model("tiny")
    assert np.shape([*first, *(next(stream) for _ in range(90))]) == (100, 32)
    engine.unload_model("tiny")
    with pytest.raises(ModelNotFound):
        for _ in stream:
            pass


@pytest.mark.parametrize(("texts", "n_ahead"), [("red", 8), (["red"], 0), (["red"], -1)])
def test_a_stream_of_wrong_arguments_is_refused(engine: EmbeddingEngine, texts: list[str], n_ahead: int) -> None:
    with pytest.raises(InputError):
        next(engine.embed_stream("tiny", texts, n_ahead=n_ahead))


# ---- memory

GROWTH = """
import sys, psutil
from embellama import EmbeddingEngine, EngineConfig
path, n_first, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with EmbeddingEngine(EngineConfig(model_path=path, model_name="m", num_workers=2, n_threads=1)) as engine:
    def call(i):
        if i % 10:
            engine.embed("m", f"red green {i}")
        elif i % 100:
            engine.embed_batch("m", ["red green blue " * (i % 7 + 1)] * 8)
        else:
            for row in engine.embed_stream("m", iter(["red"] * 20), n_ahead=8):
                pass
    for i in range(n):
        call(i)
        if i + 1 in (n_first, n):
            print(psutil.Process().memory_info().rss)
"""


def test_memory_does_not_grow_from_1000_calls_to_10000(tiny_path: str) -> None:
    result = run(sys.executable, "-c", GROWTH, tiny_path, "1000", "10000")
    assert result.returncode == 0, result.stderr
    early, late = map(int, result.stdout.split())
    assert late < 1.05 * early


# ---- the end of a process, and forks


def test_a_forked_child_is_told_that_it_has_no_threads(engine: EmbeddingEngine) -> None:
    # os.fork, not multiprocessing: the child must not run anything else of this test session.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            engine.embed("tiny", "red")
        except BaseException as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert b"its threads do not follow a fork" in os.read(reader, 1000)
    os.close(reader)
    os.close(writer)


def test_a_forked_child_can_close_an_engine_that_was_at_work(engine: EmbeddingEngine) -> None:
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(engine.embed_batch, "tiny", ["red " * 60] * 500)
        wait_until(lambda: pool_of(engine).state.n_open == 1, "the call waits")
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # ends the child if it hangs
            engine.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert call.result().shape == (500, 32)


def test_leaving_python_in_the_middle_of_work_ends_cleanly(tiny_path: str) -> None:
    program = f"""
import threading
from embellama import EmbeddingEngine, EngineConfig
config = EngineConfig(model_path={tiny_path!r}, model_name="tiny", num_workers=2, cache_bytes=0)
engine = EmbeddingEngine(config)
for _ in range(4):
    threading.Thread(target=engine.embed_batch, args=("tiny", ["red " * 60] * 5000), daemon=True).start()
while engine._models.get("tiny").backend.state.n_open < 4:
    pass
"""
    result = run(sys.executable, "-c", program)
    assert (result.returncode, result.stderr) == (0, "")


def test_what_runs_at_exit_is_told_that_the_models_are_gone(tiny_path: str) -> None:
    program = f"""
import atexit
from embellama import EmbeddingEngine, EngineConfig, Unavailable

def last():
    try:
        engine.embed("tiny", "red")
    except Unavailable as error:
        print(error)

atexit.register(last)  # before the engine's own, so it runs after it
engine = EmbeddingEngine(EngineConfig(model_path={tiny_path!r}, model_name="tiny"))
"""
    result = run(sys.executable, "-c", program)
    assert result.stdout.startswith("Python is ending"), result.stderr
