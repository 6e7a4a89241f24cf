"""Which format of a model was measured to be fastest: who finds the measurement, and who is told of it."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from embellama.advice import formats, inspection
from embellama.advice.bench import _made
from embellama.advice.formats import Comparison, FormatSpeed, faster_format, fastest_faithful
from embellama.config import EngineConfig
from embellama.gguf.header import Header
from tests.conftest import BIN, StartServer, TinyModel, run

FOUND = Comparison(
    [FormatSpeed("f32", 400, 1), FormatSpeed("f16", 500, 0.999997), FormatSpeed("q8_0", 900, 0.9981)],
    "scripts/download_models.py tiny",
)
SAID = (
    "it is in f32, and f16 was 1.25 times as fast on this machine, as faithful (cosine ≥ 0.9999); "
    "scripts/download_models.py tiny makes it"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own: nothing was measured on this machine yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "embellama"


@pytest.fixture
def f32(tiny: TinyModel, tmp_path: Path) -> Header:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny("bert-mean").read_bytes())
    header = Header(str(path))
    # One of its tokens is not a number, which llama.cpp's quantizer refuses.
    rows = np.memmap(path, "<f4", "r+", header.offsets["token_embd.weight"], header.n_values["token_embd.weight"])
    rows[np.isnan(rows)] = 0
    rows.flush()
    return header


@pytest.fixture
def f16(f32: Header, tmp_path: Path) -> Header:
    made = _made(f32, "f16", tmp_path)
    assert not made.failed
    return Header(made.path)


def config(header: Header, n_gpu_layers: int = 0) -> EngineConfig:
    return EngineConfig(model_path=header.path, n_gpu_layers=n_gpu_layers)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        (FOUND.formats, FOUND.formats[1]),
        ([FormatSpeed("f32", 411, 1), FormatSpeed("f16", 402, 1)], FormatSpeed("f32", 411, 1)),
        ([FormatSpeed("f16", 1, 0.9999), FormatSpeed("bf16", 2, 0.99989)], FormatSpeed("f16", 1, 0.9999)),
        ([FormatSpeed("q8_0", 900, 0.9981)], None),
        ([], None),
    ],
)
def test_the_best_is_the_fastest_with_the_same_vectors(found: list[FormatSpeed], best: FormatSpeed | None) -> None:
    assert fastest_faithful(found) == best


def test_every_format_of_a_model_finds_the_same_measurement(f32: Header, f16: Header) -> None:
    assert formats.read(f32) is None
    formats.write(f16, FOUND)
    assert formats.read(f32) == formats.read(f16) == FOUND


def test_a_copy_under_another_name_finds_it_too(f32: Header, tmp_path: Path) -> None:
    formats.write(f32, FOUND)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(f32.path).read_bytes())
    assert formats.read(Header(str(copy))) == FOUND


def test_other_weights_of_the_same_shape_do_not(f32: Header, tmp_path: Path) -> None:
    formats.write(f32, FOUND)
    name = next(name for name in f32.tensors if "norm" in name and name.endswith(".weight"))
    changed = bytearray(Path(f32.path).read_bytes())
    changed[f32.offsets[name]] ^= 1
    copy = tmp_path / "finetuned.gguf"
    copy.write_bytes(changed)
    assert formats.read(Header(str(copy))) is None


def test_other_shapes_do_not(f32: Header, tiny: TinyModel) -> None:
    formats.write(f32, FOUND)
    assert formats.read(Header(str(tiny("nomic-bert")))) is None


@pytest.mark.parametrize("changed", ["n_cores", "devices"])
def test_another_cpu_or_another_number_of_cores_does_not(
    f32: Header, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    formats.write(f32, FOUND)
    monkeypatch.setattr(formats, changed, {"n_cores": lambda: 99, "devices": list}[changed])
    assert formats.read(f32) is None


def test_a_damaged_measurement_is_none(f32: Header, cache: Path) -> None:
    formats.write(f32, FOUND)
    [kept] = cache.iterdir()
    kept.write_text("{")
    assert formats.read(f32) is None


def test_a_slower_file_is_told_of_the_faster_format(f32: Header, f16: Header) -> None:
    assert faster_format(config(f32), f32) == ""
    formats.write(f32, FOUND)
    assert faster_format(config(f32), f32) == SAID
    assert faster_format(config(f16), f16) == ""
    assert faster_format(config(f32, n_gpu_layers=-1), f32) == "", "it was measured on the CPU"


def test_a_format_that_was_not_measured_is_told_nothing(f32: Header) -> None:
    formats.write(f32, msgspec.structs.replace(FOUND, formats=FOUND.formats[1:]))
    assert faster_format(config(f32), f32) == ""


def test_inspect_says_so(f32: Header) -> None:
    assert inspection.inspect(config(f32)).faster == ""
    formats.write(f32, FOUND)
    result = run(BIN / "embellama", "inspect", f32.path)
    assert result.stdout.splitlines()[-1] == f"note: {SAID}", result.stdout


@pytest.mark.server
def test_the_servers_start_says_so_in_one_line(f32: Header, start_server: StartServer) -> None:
    with start_server("--model-path", f32.path, "--workers", "1") as server:
        assert "could be faster" not in server.log.read_text()
    formats.write(f32, FOUND)
    with start_server("--model-path", f32.path, "--workers", "1") as server:
        [line] = [line for line in server.log.read_text().splitlines() if "could be faster" in line]
    assert line.endswith(f"'tiny' could be faster: {SAID}")
