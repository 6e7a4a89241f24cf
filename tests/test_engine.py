"""The library as its users call it, on the default model and on tiny ones."""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama import (
    ConfigError,
    EmbeddingEngine,
    EmbeddingFailed,
    EmptyInput,
    EngineConfig,
    InputError,
    InvalidText,
    ModelLoadError,
    ModelNotFound,
    TextTooLong,
    Unavailable,
)
from tests.conftest import Reference, run, wait_until
from tests.tiny import write_bert

# The worst of the 60 texts in models/README.md, rounded down: what each format must keep.
WORST_COSINE = {"f32": 0.99999, "f16": 0.99999, "bf16": 0.9999}


def worst_cosine(model_path: str) -> float:
    return WORST_COSINE[Path(model_path).resolve().stem.rpartition("-")[2]]


def tiny(path: str, **settings: object) -> EngineConfig:
    return EngineConfig(model_path=path, model_name="tiny", num_workers=2, **settings)  # type: ignore[arg-type]


@pytest.mark.model
def test_issue_example_gives_what_it_says(model_path: str) -> None:
    config = EngineConfig.builder().with_model_path(model_path).with_model_name("minilm").build()
    with EmbeddingEngine(config) as engine:
        one = engine.embed("minilm", "Hello, world!")
        many = engine.embed_batch("minilm", ["First", "Second"])
        engine.unload_model("minilm")
    assert one.shape == (384,)
    assert many.shape == (2, 384)
    assert {one.dtype, many.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.linalg.norm([one, *many], axis=1), 1, atol=1e-6)


@pytest.mark.model
def test_vectors_are_those_of_sentence_transformers(
    engine: EmbeddingEngine, reference: Reference, model_path: str
) -> None:
    together = engine.embed_batch("minilm", reference.texts)
    alone = np.array([engine.embed("minilm", text) for text in reference.texts])
    for rows in (together, alone):
        cosines = np.sum(rows * reference.vectors, axis=1)
        worst = int(cosines.argmin())
        assert cosines[worst] >= worst_cosine(model_path), reference.texts[worst]


@pytest.mark.model
def test_many_threads_get_their_own_vectors(engine: EmbeddingEngine, reference: Reference) -> None:
    def embed(i: int) -> float:
        i %= len(reference.texts)
        return float(engine.embed("minilm", reference.texts[i]) @ reference.vectors[i])

    with ThreadPoolExecutor(16) as threads:
        assert min(threads.map(embed, range(120))) > 0.999


@pytest.mark.model
async def test_tasks_get_their_own_vectors(engine: EmbeddingEngine, reference: Reference) -> None:
    single = await asyncio.gather(*(engine.aembed("minilm", text) for text in reference.texts[:20]))
    batch = await engine.aembed_batch("minilm", reference.texts[:20])
    for rows in (np.array(single), batch):
        assert np.sum(rows * reference.vectors[:20], axis=1).min() > 0.999


words = st.sampled_from(["red", "green", "blue", "one", "two", "three", "a", "b", "unknown"])
sentence = st.lists(words, min_size=1, max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def tiny_engine(tiny_path: str) -> Iterator[EmbeddingEngine]:
    with EmbeddingEngine(tiny(tiny_path, max_batch_tokens=100, max_batch_size=8)) as engine:
        yield engine


@settings(deadline=None)
@given(texts=st.lists(sentence, min_size=1, max_size=40))
def test_a_vector_depends_neither_on_neighbours_nor_on_order(tiny_engine: EmbeddingEngine, texts: list[str]) -> None:
    together = tiny_engine.embed_batch("tiny", texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(row, tiny_engine.embed("tiny", text), atol=2e-4)


def test_no_texts_give_no_rows(tiny_engine: EmbeddingEngine) -> None:
    assert tiny_engine.embed_batch("tiny", []).shape == (0, 32)


def test_texts_may_come_from_any_iterable(tiny_engine: EmbeddingEngine) -> None:
    assert tiny_engine.embed_batch("tiny", (word for word in ("red", "blue"))).shape == (2, 32)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["red", ""], EmptyInput, "text 1 is empty"),
        (["red", "red " * 63], TextTooLong, "text 1 has 65 tokens; the limit is 64"),
        (["red", "a\ud800"], InvalidText, "text 1 is not valid Unicode: lone surrogate at character 1"),
        (["red", None], InvalidText, "text 1 is NoneType, not str"),
        ("red", InputError, "texts is one str, not a list of them; to embed one text, call embed"),
    ],
)
def test_a_wrong_text_is_named(tiny_engine: EmbeddingEngine, texts: list[str], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        tiny_engine.embed_batch("tiny", texts)
    assert str(caught.value) == message


def test_a_text_as_long_as_the_model_reads_is_embedded(tiny_engine: EmbeddingEngine) -> None:
    assert np.linalg.norm(tiny_engine.embed("tiny", "red " * 62)) == pytest.approx(1, abs=1e-6)


def test_a_huge_text_is_refused_by_its_head(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(TextTooLong, match=r"text 1 has more than \d+ tokens; the limit is 64") as caught:
        tiny_engine.embed_batch("tiny", ["red", "red " * 1_000_000])
    assert 64 < caught.value.n_tokens < 2048
    # A word is one token, however long.
    assert tiny_engine.embed("tiny", "x" * 100_000).shape == (32,)


def test_n_ctx_lowers_the_limit(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path, n_ctx=10)) as engine, pytest.raises(TextTooLong, match="limit is 10"):
        engine.embed("tiny", "red " * 9)


def test_normalization_off_keeps_the_length_the_model_gives(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path, normalization="none")) as engine:
        assert np.linalg.norm(engine.embed("tiny", "red")) > 1.5


def test_a_vector_that_is_no_number_fails_its_text_alone(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(EmbeddingFailed, match="text 2: its vector is not finite") as caught:
        tiny_engine.embed_batch("tiny", ["red", "green", "blue poison", "one"])
    assert caught.value.index == 2


async def test_a_failing_request_leaves_others_in_its_batch_alone(tiny_engine: EmbeddingEngine) -> None:
    calls = [tiny_engine.aembed("tiny", "poison" if i % 5 == 0 else "red") for i in range(40)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, EmbeddingFailed) for answer in answers] == [i % 5 == 0 for i in range(40)]


def test_a_zero_vector_is_never_returned(tmp_path: Path) -> None:
    path = str(write_bert(tmp_path / "zero.gguf", zero=True))
    with EmbeddingEngine(tiny(path)) as engine, pytest.raises(EmbeddingFailed, match="all zeros"):
        engine.embed("tiny", "red")


def test_an_unknown_model_is_named_with_those_loaded(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(ModelNotFound, match="'huge' is not loaded; loaded: 'tiny'"):
        tiny_engine.embed("huge", "red")


def test_two_models_live_side_by_side_and_unload_apart(tiny_path: str) -> None:
    with EmbeddingEngine() as engine:
        engine.load_model(EngineConfig(model_path=tiny_path, model_name="a", num_workers=1))
        engine.load_model(EngineConfig(model_path=tiny_path, num_workers=1))
        assert engine.models == ["a", "tiny"]
        with pytest.raises(ConfigError, match="'a': a model of that name is loaded already"):
            engine.load_model(EngineConfig(model_path=tiny_path, model_name="a"))
        np.testing.assert_array_equal(engine.embed("a", "red"), engine.embed("tiny", "red"))
        engine.unload_model("a")
        assert engine.models == ["tiny"]
        with pytest.raises(ModelNotFound):
            engine.embed("a", "red")


def test_a_closed_engine_refuses_and_leaves_no_thread(tiny_path: str) -> None:
    before = threading.active_count()
    engine = EmbeddingEngine(tiny(tiny_path))
    assert threading.active_count() == before + 2
    engine.close()
    engine.close()
    assert threading.active_count() == before
    with pytest.raises(Unavailable, match="closed"):
        engine.load_model(tiny(tiny_path))


def test_unloading_answers_what_was_asked_before(tiny_path: str) -> None:
    engine = EmbeddingEngine(tiny(tiny_path))
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(engine.embed_batch, "tiny", ["red blue green"] * 500) for _ in range(4)]
        wait_until(lambda: any(call.running() for call in calls), "a call runs")
        engine.close()
        for call in calls:
            # A call that came too late is told so; none is lost.
            assert isinstance(call.exception(), ModelNotFound | Unavailable | None)


async def test_cancelling_a_call_drops_its_queued_work(tiny_path: str) -> None:
    with EmbeddingEngine(tiny(tiny_path)) as engine:
        pool = engine._models["tiny"].pool
        assert pool
        calls = [asyncio.ensure_future(engine.aembed_batch("tiny", ["red " * 60] * 2000)) for _ in range(4)]
        await asyncio.to_thread(wait_until, lambda: pool._scheduler.n_open == len(calls), "every call waits")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (pool._scheduler.n_open, pool._scheduler.n_waiting) == (0, 0)
        assert engine.embed("tiny", "red").shape == (32,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "not a GGUF file: it starts with b'\\x89PNG'"),
        (b"", "not a GGUF file"),
        (b"GGUF\x03\x00\x00\x00", "cannot load"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        EmbeddingEngine(EngineConfig(model_path=str(path)))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_truncated_model_is_refused(tiny_path: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(tiny_path).read_bytes()[:-5000])
    with pytest.raises(ModelLoadError, match=r"cannot load .*cut\.gguf: .+"):
        EmbeddingEngine(EngineConfig(model_path=str(cut)))


def test_a_model_without_pooling_is_refused(tmp_path: Path) -> None:
    path = str(write_bert(tmp_path / "none.gguf", pooling=None))
    with pytest.raises(ModelLoadError, match="names no pooling type"):
        EmbeddingEngine(EngineConfig(model_path=path))


def test_a_forked_child_is_told_that_it_has_no_threads(tiny_engine: EmbeddingEngine) -> None:
    # os.fork, not multiprocessing: the child must not run anything else of this test session.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            tiny_engine.embed("tiny", "red")
        except BaseException as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert b"its threads do not follow a fork" in os.read(reader, 1000)
    os.close(reader)
    os.close(writer)


def test_leaving_python_in_the_middle_of_work_ends_cleanly(tiny_path: str) -> None:
    program = f"""
import threading
from embellama import EmbeddingEngine, EngineConfig
engine = EmbeddingEngine(EngineConfig(model_path={tiny_path!r}, model_name="tiny", num_workers=2))
for _ in range(4):
    threading.Thread(target=engine.embed_batch, args=("tiny", ["red " * 60] * 5000), daemon=True).start()
while engine._models["tiny"].pool._scheduler.n_open < 4:
    pass
"""
    result = run(sys.executable, "-c", program)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_closed_engine_says_so(tiny_path: str) -> None:
    engine = EmbeddingEngine(tiny(tiny_path))
    engine.close()
    with pytest.raises(Unavailable, match="the engine is closed"):
        engine.embed("tiny", "red")


def test_a_path_is_no_config(tiny_path: str) -> None:
    with pytest.raises(ConfigError, match="not an EngineConfig"):
        EmbeddingEngine(tiny_path)  # type: ignore[arg-type]


def test_unloading_gives_memory_back(tiny_path: str) -> None:
    process = psutil.Process()

    def load_and_unload(times: int) -> int:
        for _ in range(times):
            with EmbeddingEngine(tiny(tiny_path)) as engine:
                engine.embed("tiny", "red")
        gc.collect()
        return int(process.memory_info().rss)

    before = load_and_unload(20)
    assert load_and_unload(40) < before + 20e6
