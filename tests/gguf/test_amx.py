"""AMX, which ends the process in some builds of llama.cpp, is tried before it is used, in a process of its own."""

from pathlib import Path
from typing import Any

import pytest

from embellama import EmbeddingEngine, EmbeddingModel, EngineConfig, ModelLoadError
from embellama.gguf import amx
from embellama.gguf.loading import load_weights
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from tests.gguf.conftest import SetTrial

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
FAILS = "raise ValueError"
WORKS = ""


@pytest.fixture
def set_trial(set_trial: SetTrial, monkeypatch: pytest.MonkeyPatch) -> SetTrial:
    """Let this CPU have AMX, used for F32 too."""
    monkeypatch.setattr(amx, "HAS_AMX", True)
    monkeypatch.setattr(amx, "TYPES", {"f32"})
    return set_trial


@pytest.fixture
def repacked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each file that this process loads, whether llama.cpp may lay its weights out anew."""
    found = []
    load = c_api.llama_model_load_from_file

    def record(path: bytes, params: Any) -> Any:
        found.append(bool(params.use_extra_bufts))
        return load(path, params)

    monkeypatch.setattr(c_api, "llama_model_load_from_file", record)
    return found


def test_the_trial_computes_where_amx_does_not_break(tiny_path: str) -> None:
    assert amx._try(tiny_path) is True


@pytest.mark.parametrize(("program", "works"), [(WORKS, True), (DIES, False)])
def test_a_build_is_tried_once_and_the_loss_is_said(
    program: str, works: bool, set_trial: SetTrial, tiny_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = set_trial(program)
    assert [amx.may_repack(tiny_path), amx.may_repack(tiny_path)] == [works, works]
    assert runs.read_text() == "x"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (0 if works else 1)
    assert all("2.6 times as fast" in warning for warning in warnings)


def test_a_trial_that_came_to_no_product_says_nothing_about_other_files(set_trial: SetTrial, tiny_path: str) -> None:
    set_trial(FAILS)
    assert not amx.may_repack(tiny_path)
    set_trial(WORKS)
    assert amx.may_repack(tiny_path)


def test_nothing_is_tried_for_weights_that_amx_does_not_compute_with(
    set_trial: SetTrial, tiny_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = set_trial(DIES)
    monkeypatch.setattr(amx, "TYPES", {"q8_0"})
    assert amx.may_repack(tiny_path)
    assert runs.read_text() == ""


def test_a_damaged_file_is_named_before_anything_is_tried(set_trial: SetTrial, tmp_path: Path) -> None:
    runs = set_trial(WORKS)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError):
        load_weights(EngineConfig(model_path=str(tmp_path / "broken.gguf")))
    assert runs.read_text() == ""


@pytest.mark.parametrize(("program", "works"), [(WORKS, True), (DIES, False)])
def test_whoever_computes_heeds_the_trial(
    program: str, works: bool, set_trial: SetTrial, repacked: list[bool], tiny_path: str
) -> None:
    runs = set_trial(program)
    config = EngineConfig(model_path=tiny_path, num_workers=1)
    EmbeddingModel(config).close()  # as in the server's workers
    with EmbeddingEngine(config) as engine:
        engine.embed(None, "hello")
    load_weights(config.checked())  # as in the process that measures for the server
    assert repacked == [works] * 3
    assert runs.read_text() == "x"


def test_weights_that_nobody_tried_stay_as_they_are_in_the_file(repacked: list[bool], tiny_path: str) -> None:
    Weights(EngineConfig(model_path=tiny_path))
    assert repacked == [False]
