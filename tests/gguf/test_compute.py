"""Our kernels compute a model where a trial finds them faster and right, and nothing else changes where they don't."""

import logging
import os
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from embellama import ConfigError, EmbeddingEngine, EmbeddingModel, EngineConfig, compute_trial, kernels
from embellama.batch import Batch
from embellama.gguf import compute
from embellama.gguf.compute import Choice, choose, memory_bytes
from embellama.gguf.header import Header
from embellama.gguf.loading import load_weights
from tests.conftest import Reference, TinyModel, instruction_sets, run
from tests.gguf.conftest import SetTrial

FASTER = """print('{"compute": "avx2", "reason": "2 times as fast"}')"""
WRONG = """print('{"compute": "llama", "reason": "in a trial avx2 gave other vectors"}')"""
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
FAILS = "raise ValueError('a tensor is missing')"
HANGS = "import time; time.sleep(60)"

INSTRUCTION_SETS = instruction_sets()

TEXTS = ["red green blue one two three", "a", "red z " * 12]


@pytest.fixture
def set_trial(set_trial: SetTrial, monkeypatch: pytest.MonkeyPatch) -> SetTrial:
    """Let models of any size be tried, and a trial take a second or two."""
    monkeypatch.setattr(compute, "MIN_BYTES", 0)
    monkeypatch.setattr(compute, "TRIAL_S", 2.0)
    return set_trial


def config(path: str | Path, **settings: object) -> EngineConfig:
    return EngineConfig(model_path=str(path), **settings)  # type: ignore[arg-type]


def test_a_cpu_with_avx2_has_kernels() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert platform.machine() != "x86_64" or "avx2" not in flags or "avx2" in INSTRUCTION_SETS


def test_the_trial_finds_the_default_model_right_or_says_what_it_found_in_any_folder(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a stranger was imported')")
    monkeypatch.chdir(tmp_path)
    choice, kept = compute._try(config(model_path))
    assert kept
    assert choice.compute in {"llama", *INSTRUCTION_SETS}
    assert ("times as fast as llama.cpp, cosine " in choice.reason) == (choice.compute != "llama")


def test_kernels_for_float32_must_give_nearly_the_same_vectors(
    tiny_path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.library(), "instruction_sets", ["avx2"])
    monkeypatch.setattr(compute_trial, "compare", lambda *_: 0.9995)
    compute_trial.main(tiny_path, "auto")
    assert "avx2 gave other vectors, with a cosine of 0.9995" in capsys.readouterr().out


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_vectors_are_those_of_sentence_transformers(
    instruction_set: str, model_path: str, reference: Reference
) -> None:
    with EmbeddingModel(config(model_path, compute=instruction_set)) as model:
        rows = model.embed_batch(reference.texts)
    assert np.sum(rows * reference.vectors, axis=1).min() >= 0.9999


@pytest.mark.parametrize(
    ("program", "chosen", "told"),
    [
        (FASTER, "avx2", "2 times as fast"),
        (WRONG, "llama", "other vectors"),
        (DIES, "llama", "ended by signal 4 (SIGILL)"),
        (HANGS, "llama", "took more than 2 s; touch the file to repeat it"),
    ],
)
def test_a_model_is_tried_once_and_what_was_found_is_said(
    program: str, chosen: str, told: str, set_trial: SetTrial, tiny_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = set_trial(program)
    caplog.set_level(logging.INFO, "embellama.gguf.compute")
    assert [choose(config(tiny_path)).compute for _ in range(3)] == [chosen] * 3
    assert runs.read_text() == "x"
    [line] = [record for record in caplog.records if told in record.message]
    assert (line.levelname == "WARNING") == (chosen == "llama")


def test_a_trial_that_tells_nothing_is_made_again(set_trial: SetTrial, tiny_path: str) -> None:
    runs = set_trial(FAILS)
    assert choose(config(tiny_path)).compute == "llama"
    assert "a tensor is missing" in choose(config(tiny_path)).reason
    assert runs.read_text() == "xx"


def test_a_changed_file_and_another_one_are_tried_anew(set_trial: SetTrial, tiny_path: str, tmp_path: Path) -> None:
    runs = set_trial(HANGS)
    paths = [shutil.copy(tiny_path, tmp_path / name) for name in ("a.gguf", "b.gguf")]
    assert choose(config(paths[0])).compute == "llama"
    set_trial(FASTER)
    assert [choose(config(path)).compute for path in paths] == ["llama", "avx2"]
    os.utime(paths[0])
    assert choose(config(paths[0])).compute == "avx2"
    assert runs.read_text() == "xxx"


def test_models_that_gain_nothing_are_not_tried(
    set_trial: SetTrial, tiny_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = set_trial(FASTER)
    monkeypatch.setattr(compute, "MIN_BYTES", 4_000_000)
    assert choose(config(tiny_path)) == Choice("llama", "the model is too small to gain from kernels")
    assert choose(config(tiny_path, compute="llama")) == Choice("llama", "as set")
    assert not runs.read_text()


def test_what_cannot_be_computed_so_is_refused_by_name(tiny_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.library(), "instruction_sets", ["avx2"])
    with pytest.raises(ConfigError, match="compute is 'amx'; on this CPU it can be llama, avx2 or auto"):
        choose(config(tiny_path, compute="amx"))
    with pytest.raises(ConfigError, match="compute is 'sse': it must be one of amx, auto, avx2"):
        config(tiny_path, compute="sse").checked()


def test_without_a_library_all_works_and_one_line_says_why(
    tiny_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embellama.kernels")
    monkeypatch.setattr(kernels, "PATH", tmp_path / "missing.so")
    kernels._loaded.cache_clear()
    try:
        for _ in range(2):
            assert choose(config(tiny_path)).compute == "llama"
        with pytest.raises(ConfigError, match="compute is 'avx2', but our kernels cannot be used: they were not built"):
            choose(config(tiny_path, compute="avx2"))
    finally:
        kernels._loaded.cache_clear()
    assert [record.message for record in caplog.records] == [
        "llama.cpp computes without our kernels: they were not built (scripts/setup builds them)"
    ]


@pytest.mark.parametrize(
    ("name", "value", "loaded"),
    [("ggml", lambda *_: b"0.0.1", r".* with ggml 0\.0\.1"), ("version", "0.1", r"llama-cpp-python 0\.1 .*")],
)
def test_a_library_for_another_llama_cpp_is_not_used(
    name: str, value: object, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, name, value)
    with pytest.raises(kernels.KernelsUnusable, match=f"built for llama-cpp-python .*, and {loaded} is loaded"):
        kernels.Library(kernels.PATH)


def test_a_file_that_is_no_library_is_not_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF and then nothing")
    with pytest.raises(kernels.KernelsUnusable, match="cannot be loaded"):
        kernels.Library(broken)


def test_kernels_compute_only_models_that_were_loaded_with_them(tiny: TinyModel) -> None:
    path = tiny("bert-mean")
    counts = kernels.library().counts
    with (
        EmbeddingModel(config(path, compute=INSTRUCTION_SETS[0])) as ours,
        EmbeddingModel(config(path, compute="llama")) as plain,
    ):
        before = counts()
        plain.embed("red green blue")
        assert bytes(counts()) == bytes(before)
        ours.embed("red green blue")
        after = counts()
    # In each of its two layers.
    assert after.products - before.products == 12
    assert after.attentions - before.attentions == 2


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_what_is_packed_counts_as_memory_of_a_model(instruction_set: str, model_path: str) -> None:
    ours, header, shared = config(model_path, compute=instruction_set), Header(model_path), kernels.SharedWeights()
    with open(shared.path, "r+b") as memory:
        load_weights(ours, memory.fileno())
        packed = os.fstat(memory.fileno()).st_size
    assert memory_bytes(header, instruction_set) - header.n_bytes == pytest.approx(packed, rel=0.01)
    with pytest.raises(ConfigError, match=f"'minilm' alone takes .* bytes \\(computed with {instruction_set}\\)"):
        EmbeddingEngine(ours, max_model_bytes=header.n_bytes)
    with EmbeddingEngine(ours, max_model_bytes=header.n_bytes + packed) as engine:
        assert engine.model_info().memory_bytes == memory_bytes(header, instruction_set)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_models_come_and_go_and_weights_are_never_mistaken(instruction_set: str, tiny: TinyModel) -> None:
    """Memory that is given back is taken again by the next model, at the same addresses."""
    paths = [tiny(name) for name in ("bert-mean", "nomic-bert", "bert-cls")]
    settings = {"compute": instruction_set, "max_batch_tokens": 64}
    expected = []
    for path in paths:
        with EmbeddingModel(config(path, **settings)) as model:
            expected.append(model.embed_batch(TEXTS))
    for _ in range(5):
        models = [EmbeddingModel(config(path, **settings)) for path in paths]
        for model, rows in zip(models, expected, strict=True):
            np.testing.assert_array_equal(model.embed_batch(TEXTS), rows)
            model.close()


# In a process that nothing else uses: what other tests left behind makes its memory grow and shrink.
FIFTY_ENGINES = """
import gc, sys, threading, psutil
from embellama import EmbeddingEngine, EngineConfig

config = EngineConfig(model_path=sys.argv[1], compute=sys.argv[2], max_batch_tokens=64, num_workers=1, n_threads=2)
process = psutil.Process()

def run(n):
    for _ in range(n):
        with EmbeddingEngine(config) as engine:
            engine.embed(None, "red green blue")
    gc.collect()
    return process.memory_info().rss, threading.active_count(), process.num_fds()

before, after = run(5), run(50)
print(after[0] - before[0], after[1] - before[1], after[2] - before[2])
"""


def test_fifty_engines_leave_no_memory_threads_or_files(tiny: TinyModel) -> None:
    result = run(sys.executable, "-c", FIFTY_ENGINES, tiny("bert-mean"), INSTRUCTION_SETS[0])
    assert result.returncode == 0, result.stderr
    n_bytes, n_threads, n_files = map(int, result.stdout.split())
    assert n_bytes < 8_000_000
    assert (n_threads, n_files) == (0, 0)


def test_several_threads_give_the_same_rows_as_one(tiny: TinyModel) -> None:
    with EmbeddingModel(config(tiny("qwen3"), compute=INSTRUCTION_SETS[0], max_batch_tokens=128)) as model:
        batch = Batch.join(model.tokenizer.encode(TEXTS).tokens)
        one = model.encode(batch, 1)
        for n_threads in (2, 3, 8, 2, 1):
            np.testing.assert_array_equal(model.encode(batch, n_threads), one)
