"""How many tokens to compute together: measured once, kept, and overridden."""

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama import EmbeddingEngine, EngineConfig, ModelError, ModelLoadError
from embellama.config import DEFAULT_BATCH_TOKENS
from embellama.gguf.weights import Weights
from embellama.machine.isolated import IsolatedProcess
from embellama.machine.measurements import CachedMeasurement
from embellama.tuning import (
    KERNELS_PREFER,
    MARGIN,
    MIN_ROUNDS,
    N_ROUNDS,
    SIZES,
    candidates,
    choose,
    sweep,
    tuned,
    tuned_apart,
)
from tests.conftest import BIN, StartServer, TinyModel, run

ROUNDS = st.lists(st.fixed_dictionaries({size: st.floats(1e-6, 1) for size in SIZES}), max_size=9)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, for processes that are started too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EMBELLAMA_MAX_BATCH_TOKENS")
    monkeypatch.setattr("embellama.tuning.SWEEP_S", 60.0)  # the tiny model is done long before, on a busy machine too
    return tmp_path / "cache" / "embellama"


def config_of(path: str | Path, **settings: int) -> EngineConfig:
    return EngineConfig(model_path=str(path), **settings).checked()  # type: ignore[arg-type]


def measurements(cache: Path) -> list[str]:
    return [path.read_text() for path in cache.glob("batch-tokens-*")]


def round_of(**seconds: float) -> dict[int, float]:
    return {size: seconds.get(f"n{size}", 1.0) for size in SIZES}


@given(rounds=ROUNDS)
def test_the_default_stays_unless_another_size_is_clearly_faster(rounds: list[dict[int, float]]) -> None:
    chosen = choose(rounds)
    assert len(rounds) >= MIN_ROUNDS or chosen == DEFAULT_BATCH_TOKENS
    if chosen != DEFAULT_BATCH_TOKENS:
        assert any(MARGIN * r[chosen] <= other[DEFAULT_BATCH_TOKENS] for r in rounds for other in rounds)
        assert min(r[chosen] for r in rounds) == min(s for r in rounds for s in r.values())


@given(rounds=ROUNDS, slow=st.dictionaries(st.sampled_from(SIZES), st.floats(1, 100)))
def test_a_round_in_which_the_machine_was_busy_changes_no_choice(
    rounds: list[dict[int, float]], slow: dict[int, float]
) -> None:
    busy = [{size: s * slow.get(size, 1) for size, s in r.items()} for r in rounds[:1]]
    assert len(rounds) < MIN_ROUNDS or choose([*rounds, *busy]) == choose(rounds)


def test_the_fastest_is_chosen() -> None:
    assert choose([round_of(n96=0.90, n128=0.85, n256=1.2)] * 3) == 128
    assert choose([round_of(n128=0.98)] * 3) == DEFAULT_BATCH_TOKENS
    assert choose([round_of(n128=0.5)]) == DEFAULT_BATCH_TOKENS


def test_kernels_prefer_large_batches_where_those_were_tried() -> None:
    assert choose([round_of(n128=0.98)] * 3, KERNELS_PREFER) == KERNELS_PREFER
    assert choose([round_of(n128=0.5)] * 3, KERNELS_PREFER) == 128
    assert choose([{64: 1.0, 192: 1.0}] * 3, KERNELS_PREFER) == DEFAULT_BATCH_TOKENS


def test_a_model_too_slow_to_measure_gets_the_default(
    tiny_path: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embellama.tuning.SWEEP_S", 0.0)
    config = config_of(tiny_path)
    assert sweep(Weights(config), config) == []
    assert tuned(config, Weights(config)).max_batch_tokens == choose([]) == DEFAULT_BATCH_TOKENS
    assert not cache.exists(), "perhaps the machine was only busy"


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [64, 96, 128, 192]),  # the tiny model reads 64 tokens, and the default is never left out
        ({"n_ctx": 8, "max_batch_size": 32}, [64, 96, 128, 192]),
        ({"max_batch_size": 12}, [64, 96, 128, 192]),
        ({"max_batch_size": 8}, []),
    ],
)
def test_sizes_keep_to_the_models_limit_and_the_number_of_texts(
    settings: dict[str, int], sizes: list[int], tiny_path: str
) -> None:
    config = config_of(tiny_path, **settings)
    assert candidates(config, Weights(config)) == sizes


@pytest.mark.parametrize("name", ["bert-mean", "qwen3", "t5encoder", "bert-reranker", "qwen3-reranker"])
def test_every_kind_of_model_is_measured(name: str, tiny: TinyModel) -> None:
    config = config_of(tiny(name))
    weights = Weights(config)
    rounds = sweep(weights, config)
    assert len(rounds) == N_ROUNDS
    assert all(set(r) == set(candidates(config, weights)) for r in rounds)


def test_vectors_of_tokens_alone_are_measured(tiny_path: str) -> None:
    config = EngineConfig(model_path=tiny_path, pooling="none").checked()
    assert len(sweep(Weights(config), config)) == N_ROUNDS


def test_what_was_measured_is_not_measured_again(tiny_path: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tiny_path)
    weights = Weights(config)
    with caplog.at_level(logging.INFO, "embellama.tuning"):
        first = tuned(config, weights)
        assert "measured in" in caplog.text
        assert measurements(cache) == [str(first.max_batch_tokens)]
        (path,) = cache.glob("batch-tokens-*")
        path.write_text("96")
        assert tuned(config, weights).max_batch_tokens == 96
        assert "batches of up to 96 tokens: as measured before" in caplog.text
        tuned(config_of(tiny_path, n_threads=3), weights)  # another number of threads is another question
    assert len(measurements(cache)) == 2


@pytest.mark.parametrize("junk", ["", "0", "193", "many", "１２８"])
def test_a_damaged_measurement_is_measured_again(junk: str, tiny_path: str, cache: Path) -> None:
    config = config_of(tiny_path)
    tuned(config, Weights(config))
    (path,) = cache.glob("batch-tokens-*")
    path.write_text(junk)
    assert tuned(config, Weights(config)).max_batch_tokens in SIZES
    assert int(path.read_text()) in SIZES


def test_a_number_of_ones_own_wins_and_nothing_is_measured(tiny_path: str, cache: Path) -> None:
    with EmbeddingEngine(config_of(tiny_path, max_batch_tokens=80)) as engine:
        engine.embed(None, "hello")
    assert not cache.exists()


def test_loading_a_model_measures_it(tiny_path: str, cache: Path) -> None:
    for _ in range(2):
        with EmbeddingEngine(config_of(tiny_path)) as engine:
            engine.embed(None, "hello")
        assert len(measurements(cache)) == 1


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    tiny_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    measurement = CachedMeasurement("test")
    measurement.write("word")
    assert measurement.read() is None
    config = config_of(tiny_path)
    assert tuned(config, Weights(config)).max_batch_tokens in SIZES


def test_a_measurement_is_kept_for_its_key_and_leaves_no_other_file(cache: Path) -> None:
    CachedMeasurement("test", "a", 1).write("word")
    assert CachedMeasurement("test", "a", 1).read() == "word"
    assert CachedMeasurement("test", "a", 2).read() is None
    assert [path.name.rpartition("-")[0] for path in cache.iterdir()] == ["test"]


def test_a_process_of_its_own_measures_the_same_question(tiny_path: str, cache: Path) -> None:
    config = config_of(tiny_path)
    found = tuned_apart(config, Weights(config, vocab_only=True)).max_batch_tokens
    assert measurements(cache) == [str(found)]
    assert tuned(config, Weights(config)).max_batch_tokens == found


def test_a_process_that_dies_while_measuring_leaves_the_default(
    tiny_path: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("embellama.tuning.sweep", dies)
    config = config_of(tiny_path)
    assert tuned_apart(config, Weights(config, vocab_only=True)).max_batch_tokens == DEFAULT_BATCH_TOKENS
    assert "could not be measured: its process ended by signal 6 (SIGABRT)" in caplog.text
    assert not measurements(cache)


def dies(*_: object) -> None:
    os.abort()


def fails(*_: object) -> None:
    raise ValueError("no")


def test_errors_come_back_from_a_process_of_its_own(tiny_path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        IsolatedProcess(Weights, config_of(tmp_path / "missing.gguf"))
    with IsolatedProcess(str, "one") as process:
        assert process.call(len) == 3
        with pytest.raises(ModelError, match="ValueError: no"):
            process.call(fails)


def test_a_process_of_its_own_goes_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from embellama.machine.isolated import IsolatedProcess\n"
        "if __name__ == '__main__':\n"
        "    process = IsolatedProcess(dict)\n"
        "    print(process._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(code)
    found = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    end = time.monotonic() + 30
    while Path(f"/proc/{int(found.stdout)}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.server
def test_the_server_tells_what_it_measured_and_remembers(
    start_server: StartServer, tiny_path: str, cache: Path
) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1")
    with start_server(*flags) as server:
        told = re.search(r"batches of up to (\d+) tokens: measured in", server.log.read_text())
        assert told
        assert httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "hello"}).status_code == 200
    assert measurements(cache) == [told[1]]
    with start_server(*flags) as server:
        assert f"batches of up to {told[1]} tokens: as measured before" in server.log.read_text()
    with start_server(*flags, "--max-batch-tokens", "100") as server:
        assert "batches of up to 100 tokens: as set" in server.log.read_text()


@pytest.mark.server
def test_a_model_that_cannot_be_measured_fails_as_clearly_as_ever(tiny_path: str, tmp_path: Path, cache: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(tiny_path).read_bytes()[:-5000])
    result = run(BIN / "embellama-server", "--model-path", cut, "--workers", "1", "--port", "0")
    assert result.returncode == 1
    assert f"Error: cannot load {cut}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not measurements(cache)
