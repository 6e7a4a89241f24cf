"""`embellama stats`, as people run it, and the examples of docs/records.md."""

import datetime
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result

from embellama.cli.main import main
from embellama.records.hashes import TextHash, make_key
from embellama.records.line import RequestLine
from tests.conftest import BIN, ROOT, StartServer, run
from tests.records.conftest import line, write_log

DOCUMENT = (ROOT / "docs" / "records.md").read_text()
NOW = datetime.datetime.now(datetime.UTC)
YESTERDAY = str(NOW.date() - datetime.timedelta(days=1))


def of_day(day: str, lines: list[RequestLine]) -> list[RequestLine]:
    """Move lines to another day."""
    return [msgspec.structs.replace(each, time=day + each.time[10:]) for each in lines]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `log` in the current one, with lines of the days of the document and of yesterday."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "log"
    lines = [
        line(20 * i, 5 + i % 7, (200, 200, 503)[i % 3], model=("minilm", "bge")[i % 2], key="alice")
        for i in range(4000)
    ]
    for day in {"2026-11-01", "2026-11-20", "2026-11-21", YESTERDAY}:
        write_log(folder, of_day(day, lines), day=day)
    make_key(folder)
    return folder


def stats(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["stats", *map(str, arguments)])


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind == language]


COMMANDS = [each for block in blocks("bash") for each in block.splitlines() if each.startswith("embellama stats")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_documents_commands_run(log: Path, command: str) -> None:
    result = stats(*shlex.split(command)[2:])
    assert result.exit_code == 0, result.output
    if "--compare" in command:
        assert re.search(r"(noise|differs|too few)$", result.output, re.MULTILINE)
    if "--chart" in command:
        assert "<svg" in Path("requests.svg").read_text()


def test_tables_are_as_the_document_shows_them(log: Path) -> None:
    shown, compared = (block.splitlines() for block in blocks(""))
    by_model = stats("log", "--by", "model").output.splitlines()
    assert by_model[2].split() == shown[2].split()
    assert [each.split()[0] for each in by_model[3:6]] == ["bge", "minilm", "total"]
    assert re.fullmatch(r"errors: 503 \d+", by_model[-1])
    differences = stats("log", "--compare", "2026-11-20", "2026-11-21").output.splitlines()
    assert differences[0].split() == compared[0].split()
    assert {each.split("  ")[0] for each in differences} >= {each.split("  ")[0] for each in compared}


def test_the_documents_program_hashes_a_text(log: Path) -> None:
    [program] = blocks("python")
    result = run(BIN / "python", "-c", program)
    assert result.stdout.strip() == TextHash(log)("A cat sleeps."), result.stderr


@pytest.mark.model
@pytest.mark.server
def test_the_documents_server_writes_the_documents_line(
    start_server: StartServer, model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [flags] = re.findall(r"^embellama-server --model-path models/minilm.gguf (.*)$", DOCUMENT, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    with start_server("--model-path", model_path, "--workers", "1", *flags.split()) as server:
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "minilm", "input": "A cat sleeps."})
    [path] = Path("log").glob("requests-*.jsonl")  # all is written when the server has ended
    written, shown = json.loads(path.read_text()), json.loads(blocks("json")[0])
    assert list(written) == list(shown)
    same = ("v", "path", "status", "client", "model", "n_texts", "n_tokens")
    assert {name: written[name] for name in same} == {name: shown[name] for name in same}
    assert written["id"] == answer.headers["x-request-id"]
    found = json.loads(stats("log", "--json").output)
    assert (found["total"]["requests"], found["total"]["tokens"]) == (1, answer.json()["usage"]["prompt_tokens"])


def test_every_field_of_a_line_is_documented() -> None:
    for name in RequestLine.__struct_fields__:
        assert f"`{name}`" in DOCUMENT, name


def test_torn_lines_are_told_beside_the_figures(log: Path) -> None:
    [path] = log.glob(f"requests-{YESTERDAY}-*")
    path.write_bytes(path.read_bytes()[:-20])
    result = stats("log", "--days", "2")
    assert result.exit_code == 0
    assert result.stderr == "lines that are torn, or are none of a request log, were left out: 1\n"
    assert json.loads(stats("log", "--days", "2", "--json").stdout)["unreadable_lines"] == 1


def test_a_log_of_nothing_but_foreign_lines_is_told(tmp_path: Path) -> None:
    path = write_log(tmp_path, [], day=YESTERDAY)
    path.write_text("not ours\n\nnor this\n")
    result = stats(tmp_path, "--days", "2")
    assert result.exit_code == 1
    assert result.output.endswith("; lines that are torn, or are none of a request log, were left out: 2\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing"], "missing cannot be read: No such file or directory"),
        (["."], ". has no files of a request log"),
        (["log", "--days", "0.000001"], "log has no requests from 20"),
        (["log", "--days", "nan"], "days is nan: there is no such day"),
        (["log", "--days", "1e18"], "days is 1e+18: there is no such day"),
        (["log", "--chart", "requests.gif"], "its name must end in .svg or .png"),
        (["log", "--compare", "minilm", "none"], "none: there are no requests of it from"),
    ],
)
def test_what_cannot_be_told_is_one_line(log: Path, arguments: list[str], told: str) -> None:
    result = stats(*arguments)
    assert result.exit_code == 1
    assert told in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["log", "--days", "0"],
        ["log", "--by", "colour"],
        ["log", "--compare", "a", "b", "--by", "key"],
        ["log", "--compare", "a", "b", "--chart", "a.svg"],
        [],
    ],
)
def test_wrong_usage_is_refused(log: Path, arguments: list[str]) -> None:
    assert stats(*arguments).exit_code == 2


def test_without_duckdb_the_extra_is_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert "pip install 'embellama[stats]'" in stats("log").output


def test_only_the_largest_groups_are_shown(log: Path) -> None:
    lines = [line(i, client=f"10.0.{i}.1") for i in range(70)]
    write_log(log, of_day(YESTERDAY, lines), day=YESTERDAY, process="f" * 16)
    result = stats("log", "--by", "client")
    assert "… and 21 more, which --json has" in result.output
    assert len(json.loads(stats("log", "--by", "client", "--json").stdout)["groups"]) == 71


@pytest.mark.parametrize("by", ["", "model", "key"])
def test_charts_are_drawn(log: Path, by: str) -> None:
    names = ["_hidden", "$x$", "größer"]
    lines = [line(i, model=names[i % 3], status=503 if i % 3 == 1 else 200) for i in range(30)]
    write_log(log, of_day(YESTERDAY, lines), day=YESTERDAY, process="f" * 16)
    result = stats("log", "--chart", "chart.png", *(["--by", by] if by else []))
    assert result.exit_code == 0, result.output
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG")
