"""Inputs and outputs that are broken: the command names them, and what is not broken is embedded."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embellama.bulk.files import MAX_ROW_BYTES
from tests.bulk.conftest import Bulk, lines, texts
from tests.bulk.pdfs import pdf


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"text\nred\ncaf\xe9\nblue\n", "invalid_row", "the row is not utf-8: byte 3 of its line is 0xe9"),
        (b"text,id\nred,1\ngreen\nblue,2\n", "invalid_row", "the row has 1 columns; the first row has 2"),
        (b'{"text":"red"}\n{"id":1}\n{"text":"blue"}\n', "missing_column", "the row has no column 'text'"),
        (
            b'{"text":"red"}\n{"text":\n"blue"\n',
            "invalid_row",
            "the row is not JSON: Input data was truncated",
        ),
        (
            b'{"text":"red"}\n[1]\n"blue"\n',
            "invalid_row",
            "the row is neither a JSON object nor a JSON string",
        ),
        (b'{"text":"red"}\n{"text":[1]}\n"blue"\n', "invalid_row", "column 'text' is no text: it is list"),
    ],
)
def test_a_broken_row_fails_by_itself(bulk: Bulk, tmp_path: Path, data: bytes, code: str, message: str) -> None:
    source, out = tmp_path / ("in.jsonl" if data.startswith(b"{") else "in.csv"), tmp_path / "out.jsonl"
    source.write_bytes(data)
    assert bulk(source, "-o", out, "--encoding", "utf-8", "--column", "text").returncode == 3
    first, broken, last = lines(out)
    assert (first["status"], broken["error"], last["status"]) == ("ok", {"code": code, "message": message}, "ok")


def gzipped(n: int) -> bytes:
    return gzip.compress("\n".join(texts(n)).encode())


def parquet(n: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts(n)}), file, row_group_size=10)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzipped(10)[:-20], "its gzip data is broken: "),
        (gzipped(10_000)[:-20], "its gzip data is broken: "),
        (gzipped(10_000)[:5000] + b"\0" * 5000, "its gzip data is broken: "),
        (pa.compress(b"red\n" * 1000, "zstd", asbytes=True)[:-5], "its zstd data is broken: "),
        (parquet(1000)[:2000], "cannot be read: "),
        (parquet(1000)[:2000] + b"\0" * 2000 + parquet(1000)[4000:], "cannot be read: "),
        (b"", "is empty"),
        (pdf("red")[:300], ""),
    ],
)
def test_a_broken_file_is_named(bulk: Bulk, tmp_path: Path, data: bytes, says: str) -> None:
    source = tmp_path / "in"
    source.write_bytes(data)
    result = bulk(source, "-o", tmp_path / "out.jsonl")
    assert result.returncode == (1 if says else 3)
    assert f"{source}{' ' * says.startswith(('is', 'cannot'))}" in result.stderr or not says
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def a_file_as_folder(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "out"


def an_output(folder: Path) -> Path:
    (folder / "out").touch()
    return folder / "out"


def a_folder(folder: Path) -> Path:
    (folder / "out").mkdir()
    return folder / "out"


@pytest.mark.parametrize(
    ("place", "flag", "says"),
    [
        (a_file_as_folder, "output", "there is no folder {}/file"),
        (lambda folder: folder / "nowhere" / "out", "summary", "there is no folder {}/nowhere"),
        (lambda folder: Path("/proc/self/out"), "output", "/proc/self/out"),
        (an_output, "output", "out is there already; --overwrite replaces it"),
        (a_folder, "output", "out, which is a folder"),
        (a_folder, "summary", "out, which is a folder"),
        (lambda folder: folder / "in.txt", "summary", "in.txt is an input and the summary"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    bulk: Bulk, tmp_path: Path, place: Callable[[Path], Path], flag: str, says: str
) -> None:
    source, counts = tmp_path / "in.txt", tmp_path / "counts"
    source.write_text("red\n")
    flags = {"output": tmp_path / "out.jsonl", flag: place(tmp_path)}
    arguments = (each for name, path in flags.items() for each in (f"--{name}", path))
    result = bulk(source, *arguments, counts=str(counts))
    assert result.returncode == 1
    assert says.format(tmp_path) in result.stderr
    assert not counts.exists() or not counts.read_text()
    assert source.read_text() == "red\n"


def test_a_missing_input_is_named(bulk: Bulk, tmp_path: Path) -> None:
    result = bulk(tmp_path / "none.txt", "-o", tmp_path / "out.jsonl")
    assert result.stderr == f"Error: {tmp_path}/none.txt cannot be read: No such file or directory\n"


def test_a_gigabyte_without_a_line_end_is_a_row_that_fails_in_bounded_memory(bulk: Bulk, tmp_path: Path) -> None:
    source, small, out = tmp_path / "in.txt", tmp_path / "small.txt", tmp_path / "out.jsonl"
    small.write_text("red\n")
    source.write_text("red\n")
    os.truncate(source, 2**30)  # a file with a hole, which takes no room
    usual = bulk(small, "-o", tmp_path / "small.jsonl").max_rss
    result = bulk("-", "-o", out, stdin=str(source))
    good, failed = lines(out)
    assert good["status"] == "ok"
    assert failed["error"]["message"] == f"the row has {2**30 - 4} bytes; the limit is {MAX_ROW_BYTES}"
    assert result.max_rss < usual + 32 * 2**20


def test_the_summary_is_json(bulk: Bulk, tmp_path: Path) -> None:
    source, summary = tmp_path / "in.txt", tmp_path / "summary.json"
    source.write_text("red\n\n")
    bulk(source, "-o", tmp_path / "out.jsonl", "--summary", summary)
    told = json.loads(summary.read_text())
    failures = {"invalid_request_error": 1}
    assert told["counts"] == {"rows": 2, "failed": 1, "skipped": 0, "tokens": 3, "cut": 0, "failures": failures}


def test_a_file_called_pdf_that_is_none_is_no_text(bulk: Bulk, tmp_path: Path) -> None:
    source, out = tmp_path / "in.pdf", tmp_path / "out.jsonl"
    source.write_text("red\n")
    assert bulk(source, "-o", out).returncode == 3
    assert [row["error"]["code"] for row in lines(out)] == ["invalid_document"]


def test_a_misspelt_column_is_told_beside_those_there_are(bulk: Bulk, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("title,body\nred,blue\n")
    refused = bulk(source, "-o", tmp_path / "out.jsonl", "--column", "Body")
    assert "there is no column 'Body'; the input has 'title', 'body'" in refused.stderr


def test_chunks_that_are_too_long_leave_nothing_behind(bulk: Bulk, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("red")
    refused = bulk(folder, "-o", tmp_path / "out.jsonl", "--chunk-tokens", "5000")
    assert "chunk_tokens is 5000" in refused.stderr
    assert "--resume" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
