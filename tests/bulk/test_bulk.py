"""What `embellama bulk` reads, and what it makes of rows that are wrong."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embellama.bulk.detect import detect
from embellama.bulk.files import MAX_ROW_BYTES
from embellama.bulk.job import BulkJob
from embellama.bulk.readers import reader_of
from embellama.bulk.rows import RowError
from tests.bulk.conftest import Bulk, lines
from tests.conftest import BIN, run

ROWS = [{"id": "x", "text": "red, green"}, {"id": "y", "text": 'two\n"lines"'}, {"id": "z", "text": "blue"}]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"in.{kind}"
    match kind:
        case "csv":
            path.write_text('id,text\nx,"red, green"\ny,"two\n""lines"""\nz,blue\n')
        case "utf-16":
            path.write_text('id;text\nx;red, green\ny;"two\n""lines"""\nz;blue\n', encoding="utf-16")
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case "gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
        case "zst":
            path.write_bytes(
                pa.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode(), "zstd", asbytes=True)
            )
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
        case "arrow":
            with pa.ipc.new_file(path, pa.Table.from_pylist(ROWS).schema) as writer:
                writer.write_table(pa.Table.from_pylist(ROWS), max_chunksize=2)
    return path


@pytest.mark.parametrize("kind", ["csv", "utf-16", "jsonl", "gz", "zst", "parquet", "arrow"])
def test_a_format_is_found_by_its_content_and_read_on_from_any_row(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind).rename(tmp_path / "without-a-name")
    reader = reader_of(detect(str(path), BulkJob()))
    read = list(reader.records(0, None))
    assert [record for record, _ in read] == ROWS
    for number, (_, after) in enumerate(read, 1):
        assert [record for record, _ in reader.records(after, None)] == ROWS[number:]


def test_rows_that_are_wrong_fail_and_the_others_go_on(bulk: Bulk, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    texts = [b"red", b"poison", b"caf\xe9", b"a " * 100, b'"",3', b"", b"blue"]
    source.write_bytes(b"text\n" + b"\n".join(texts[:5]) + b"\nblue\n")
    result = bulk(source, "-o", out, "--encoding", "utf-8", "--allowed-failure-rate", "0.5")
    assert result.returncode == 3, result.stderr
    codes = [row.get("error", {}).get("code", "ok") for row in lines(out)]
    assert codes == ["ok", "model_error", "invalid_row", "context_length_exceeded", "invalid_row", "ok"]


def test_a_line_without_end_is_a_row_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"red\n" + b"a" * (3 * MAX_ROW_BYTES) + b"\nblue\n")
    (first, _), (long, after), (last, end) = reader_of(detect(str(path), BulkJob())).records(0, None)
    assert isinstance(long, RowError)
    assert (first, last, end - after) == ({"text": "red"}, {"text": "blue"}, 5)


def test_outputs_hold_the_same_vectors(bulk: Bulk, tmp_path: Path) -> None:
    source = write(tmp_path, "jsonl")
    for suffix in ("jsonl", "parquet", "arrow", "npy"):
        flags = ("--id-column", "id", "--column", "id", "--dtype", "float16")
        assert bulk(source, "-o", tmp_path / f"out.{suffix}", *flags).returncode == 0
    wanted = [row["embedding"] for row in lines(tmp_path / "out.jsonl")]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    parquet, arrow = pq.read_table(tmp_path / "out.parquet"), pa.ipc.open_file(tmp_path / "out.arrow").read_all()
    assert parquet["embedding"].type == pa.list_(pa.float16(), 32)
    assert parquet["embedding"].to_pylist() == arrow["embedding"].to_pylist() == wanted
    assert parquet["id"].to_pylist() == ["x", "y", "z"]


def test_standard_input_goes_to_standard_output(bulk: Bulk, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("red\nblue\n\n")
    result = bulk("-", "-o", "-", "--dimensions", "2", stdin=str(tmp_path / "in"))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"]
    assert result.returncode == 3


def test_a_job_file_holds_what_flags_say(bulk: Bulk, tmp_path: Path) -> None:
    source, file = write(tmp_path, "jsonl"), tmp_path / "job.toml"
    file.write_text(
        f'inputs = ["{source}"]\noutput = "{tmp_path}/out.jsonl"\ntemplate = "{{id}} {{text}}"\nlimit = 2\n'
    )
    assert bulk("--job", file).returncode == 0
    assert len(lines(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--column", "title"), "there is no column 'title'; the input has 'id', 'text'"),
        (("--template", "{title}"), "there is no column 'title'"),
        (("--part-rows", "0"), "--part-rows is 0; it must be a whole number of at least 2 and at most 1000000"),
        (("-o", "/nowhere/out.jsonl"), "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    bulk: Bulk, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    result = bulk(write(tmp_path, "jsonl"), "-o", tmp_path / "out.jsonl", *flags)
    assert result.returncode in (1, 2)
    assert says in result.stderr


def test_settings_that_bulk_has_no_use_for_are_refused(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("cache_bytes = 5\n")
    for flags, says in (
        (("--cache-bytes", "5"), "No such option"),
        (("--config", str(settings)), "'cache_bytes' means nothing to this command"),
    ):
        refused = run(BIN / "embellama", "bulk", "rows.csv", "-o", tmp_path / "rows.jsonl", *flags)
        assert (refused.returncode, says in refused.stderr) == (2, True), refused.stderr
