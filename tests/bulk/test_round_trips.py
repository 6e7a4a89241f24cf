"""CSV and JSON lines are read as they were written, with any delimiter, encoding and line end, from any row on."""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama.bulk.detect import detect
from embellama.bulk.inputs import Input, makers_of, rows_of
from embellama.bulk.job import BulkJob
from embellama.bulk.readers import reader_of
from embellama.bulk.rows import Part, Position, parts_of

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"]
LINE_ENDS = ["\n", "\r\n"]

# CSV has no way to write NUL, and Python's reader makes a line end of a lone "\r".
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
rows = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


def read(data: bytes, job: BulkJob) -> list[list[object]]:
    """Read records, and again from behind each; what is read must be the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in"
        path.write_bytes(data)
        reader = reader_of(detect(str(path), job))
        found = list(reader.records(0, None))
        for number, (_, after) in enumerate(found, 1):
            assert [record for record, _ in reader.records(after, None)] == [record for record, _ in found[number:]]
    return [list(record.values()) if isinstance(record, dict) else [record] for record, _ in found]


@settings(deadline=None, max_examples=40)
@given(
    rows=rows,
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(ENCODINGS),
    line_end=st.sampled_from(LINE_ENDS),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_is_read_as_it_was_written(
    rows: Sequence[tuple[str, str]], delimiter: str, encoding: str, line_end: str, quoting: int
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
    names = [(f"text{number}", f"more{number}") for number in range(3)]  # rows by which the delimiter is found
    writer.writerows([("text", "more"), *names, *rows])
    given = encoding if encoding == "utf-16-le" else ""  # without a mark only the user knows
    job = BulkJob(format="csv", column="text", encoding=given)
    assert read(file.getvalue().encode(encoding), job) == [list(row) for row in [*names, *rows]]


@settings(deadline=None, max_examples=40)
@given(rows=rows, encoding=st.sampled_from(ENCODINGS), line_end=st.sampled_from(LINE_ENDS), ascii=st.booleans())
def test_json_lines_are_read_as_they_were_written(
    rows: Sequence[tuple[str, str]], encoding: str, line_end: str, ascii: bool
) -> None:
    lines = [json.dumps({"text": text, "more": more}, ensure_ascii=ascii) for text, more in rows]
    given = encoding if encoding == "utf-16-le" else ""
    data = "".join(f"{line}{line_end}" for line in lines).encode(encoding)
    assert read(data, BulkJob(format="jsonl", encoding=given)) == [list(row) for row in rows]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    csv_path, lines_path = folder / "a.csv", folder / "b.txt"
    csv_path.write_text("text,id\n" + "".join(f'"row\n{number}",{number}\n' for number in range(30)))
    lines_path.write_text("".join("\n" if number % 3 else f"line {number}\n" for number in range(30)))
    return [csv_path, lines_path]


@settings(deadline=None, max_examples=40)
@given(
    part_rows=st.integers(2, 30),
    offset=st.integers(0, 40),
    limit=st.none() | st.integers(1, 60),
    skip_empty=st.booleans(),
)
def test_parts_that_are_read_on_from_any_of_them_are_the_same(
    paths: list[Path], part_rows: int, offset: int, limit: int | None, skip_empty: bool
) -> None:
    job = BulkJob(part_rows=part_rows, offset=offset, limit=limit, skip_empty=skip_empty, column="")
    inputs = [Input(detect(str(path), job), None) for path in paths]

    def parts(start: Position) -> list[Part]:
        return list(parts_of(rows_of(job, inputs, makers_of(job, inputs), None, start), job))

    whole = parts(Position())
    for number, part in enumerate(whole, 1):
        assert parts(part.end) == whole[number:]
