"""`embellama bench`: formats of a model side by side."""

import re
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from embellama.advice.bench import (  # its pure parts, and one that needs a death
    FORMATS,
    MIN_SLICE_S,
    N_ROUNDS,
    _advice,
    _made,
    _measured,
    _most_precise,
    _slices,
    bench,
    compare,
)
from embellama.advice.candidate import Candidate
from embellama.advice.kept import kept
from embellama.advice.report import Report, Row, Setting, table
from embellama.config import DEFAULT_BATCH_TOKENS
from embellama.errors import ModelLoadError
from embellama.gguf.header import Header
from embellama.machine.isolated import IsolatedProcess
from tests.conftest import BIN, TinyModel, run


def row(name: str, texts_per_s: float = 0, cosine: float = 1, **values: object) -> Row:
    known = {"name": name, "format": name, "path": f"{name}.gguf", "texts_per_s": texts_per_s, "worst_cosine": cosine}
    return Row(**(known | values))  # type: ignore[arg-type]


def setting(num_workers: int, n_threads: int, texts_per_s: float) -> Setting:
    return Setting(num_workers=num_workers, n_threads=n_threads, texts_per_s=texts_per_s, p50_ms=1)


@pytest.mark.parametrize(
    ("best", "fastest", "settings", "advice"),
    [
        (
            row("bf16", 500, 0.99996),
            row("q8_0", 800, 0.9981),
            [setting(2, 0, 500), setting(1, 0, 400)],
            "Fastest with cosine ≥ 0.9999: bf16, --workers 2; fastest of all: q8_0 (worst cosine 0.9981)",
        ),
        (
            row("f16", 500, 0.999997),
            None,
            [setting(4, 0, 400), setting(2, 1, 500)],
            "Fastest of all, with cosine ≥ 0.9999: f16, --workers 2 --n-threads 1",
        ),
        (row("q4", 9, 0.95), None, [setting(1, 0, 9)], "Fastest of all, with worst cosine 0.95000: q4, --workers 1"),
    ],
)
def test_the_advice_names_the_fastest_faithful_format(
    best: Row, fastest: Row | None, settings: list[Setting], advice: str
) -> None:
    assert _advice(best, settings, fastest or best) == advice


def test_the_most_precise_is_told_by_format_then_by_size() -> None:
    rows = [row("q8_0", n_bytes=9), row("q4_K", n_bytes=5), row("bf16", n_bytes=7), row("f32", failed="no")]
    assert _most_precise(rows) == rows[2]
    assert _most_precise([row("q4_K", n_bytes=5), row("q6_K", n_bytes=6)]) == row("q6_K", n_bytes=6)
    assert _most_precise(rows[3:]) is None


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep reports of tests away from those of whoever runs them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.model
def test_one_file_is_made_into_the_formats_and_each_is_measured(
    model_path: str, tmp_path: Path, own_cache: None
) -> None:
    chart = tmp_path / "chart.svg"
    result = run(BIN / "embellama", "bench", model_path, "--seconds", "3", "--json", "--chart", chart)
    assert result.returncode == 0, result.stderr
    report = msgspec.json.decode(result.stdout, type=Report)
    last = kept()
    assert last is not None
    assert last.report == report
    rows = {row.name: row for row in report.rows}
    assert list(rows) == list(FORMATS)
    assert report.reference == "f32"
    for found in rows.values():
        assert not found.failed
        assert found.texts_per_s > 0
        assert found.p50_ms > 0
        assert 64 <= found.max_batch_tokens <= 384
        assert found.worst_cosine <= found.mean_cosine <= 1
    assert rows["f32"].worst_cosine == pytest.approx(1)
    assert rows["f16"].worst_cosine > 0.9999
    assert 0.99 < rows["q8_0"].worst_cosine < rows["f16"].worst_cosine
    assert rows["f32"].n_bytes > 1.9 * rows["f16"].n_bytes > 1.8 * rows["q8_0"].n_bytes
    assert {setting.num_workers for setting in report.settings} >= {1}
    assert report.advice.startswith("Fastest ")
    assert ElementTree.parse(chart).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert not [path for path in tmp_path.iterdir() if path != chart]


def test_a_format_that_cannot_be_made_is_a_row_that_says_why(tiny_path: str, own_cache: None) -> None:
    # The tiny model has a token that is not a number, which llama.cpp does not quantize.
    result = run(BIN / "embellama", "bench", tiny_path, "--seconds", "1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^f32( +[\d.]+){6} +llama$", result.stdout, re.MULTILINE), result.stdout
    assert re.search(r"^q8_0 +failed: tensor 'token_embd.weight' has invalid data$", result.stdout, re.MULTILINE)
    assert "Fastest of all, with cosine ≥ 0.9999: f32, --workers" in result.stdout


def test_a_format_for_which_there_is_too_little_disk_says_so(
    tiny_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "f16", (FORMATS["f16"][0], 1e15))
    failed = _made(Header(tiny_path), "f16", tmp_path).failed
    assert re.fullmatch(rf"it needs \d+ MB of disk in {tmp_path.parent}, where \d+ MB are free", failed)


def test_several_files_are_measured_as_they_are(tiny: TinyModel, tiny_path: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("not a model")
    paths = [tiny_path, str(tiny("bert-cls")), str(tmp_path / "bad.gguf"), str(tiny("bert-reranker")), tiny_path]
    report = bench(paths, 1)
    assert [row.name for row in report.rows] == [
        "tiny.gguf (f32)",
        "bert-cls.gguf (f32)",
        "bad.gguf",
        "bert-reranker.gguf",
    ]
    assert not report.rows[0].failed
    assert not report.rows[1].failed
    assert "not a GGUF file" in report.rows[2].failed
    assert "its pooling is rank" in report.rows[3].failed
    assert "bad.gguf" in table(report)


def test_files_are_compared_side_by_side_in_the_time_that_is_given(tiny: TinyModel, tiny_path: str) -> None:
    steps: list[float] = []
    started = time.monotonic()
    rows = compare([tiny_path, str(tiny("bert-cls"))], 4, lambda: steps.append(time.monotonic() - started))
    assert [row.format for row in rows] == ["f32", "f32"]
    assert all(row.texts_per_s > 0 and not row.failed for row in rows)
    assert {row.max_batch_tokens for row in rows} == {DEFAULT_BATCH_TOKENS}
    n_measured = len(steps) - len(rows)
    assert n_measured >= 2 * len(rows), "several rounds"
    assert steps == sorted(steps)


def test_a_process_that_dies_is_a_row_that_says_so(tiny_path: str, tiny: TinyModel) -> None:
    paths = [tiny_path, str(tiny("bert-cls"))]
    processes = {path: IsolatedProcess(Candidate, path) for path in paths}
    try:
        processes[paths[0]]._process.kill()
        rows = _measured([row("a", path=paths[0]), row("b", path=paths[1])], processes, 0)
    finally:
        for process in processes.values():
            process.close()
    assert rows[0].failed == "its process ended by signal 9 (SIGKILL)"
    assert not rows[1].failed
    assert rows[1].texts_per_s > 0


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("not a model")
    for paths in ([tmp_path / "bad.gguf"], [tmp_path / "missing.gguf", tmp_path / "bad.gguf"]):
        result = run(BIN / "embellama", "bench", *paths)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: cannot load")
        assert len(result.stderr.splitlines()) == 1
        assert "not a GGUF file" in result.stderr


def test_a_reranker_is_refused(tiny: TinyModel) -> None:
    with pytest.raises(ModelLoadError, match="its pooling is rank"):
        bench([str(tiny("bert-reranker"))], 1)


@pytest.mark.model
def test_files_of_different_dimensions_have_no_cosine(model_path: str, tiny_path: str) -> None:
    # Which of them is the more precise depends on the format that was measured to be the fastest here.
    failed = [row.failed for row in bench([tiny_path, model_path], 1).rows if row.failed]
    assert len(failed) == 1
    assert re.fullmatch(r"its vectors have (384|32) numbers, those of \S+ \(\w+\) (32|384)", failed[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [("chart.pdf", "its name must end in .svg or .png"), ("none/chart.svg", "there is no such folder")],
)
def test_a_chart_that_cannot_be_drawn_is_refused_before_measuring(name: str, message: str, tmp_path: Path) -> None:
    result = run(BIN / "embellama", "bench", tmp_path / "missing.gguf", "--chart", tmp_path / name)
    assert result.returncode == 1
    assert message in result.stderr


def test_a_chart_without_matplotlib_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from embellama.cli.main import main; main()"
    result = run(sys.executable, "-c", code, "bench", "missing.gguf", "--chart", tmp_path / "chart.svg")
    assert result.returncode == 1
    assert result.stderr == (
        "Error: a chart needs matplotlib, which is not installed: pip install 'embellama[bench]'\n"
    )


@pytest.mark.parametrize("seconds", [0, 1, 8, 100])
def test_nothing_is_measured_for_a_moment_only(seconds: float) -> None:
    slices = list(_slices(time.monotonic() + seconds, 4))
    assert 1 <= len(slices) <= N_ROUNDS
    assert min(slices) >= MIN_SLICE_S
    assert 4 * sum(slices) <= max(seconds, 4 * MIN_SLICE_S) + 1e-6
