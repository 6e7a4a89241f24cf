"""Outputs are read as vectors, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embellama.bulk.backend import Embedded
from embellama.bulk.job import BulkJob
from embellama.bulk.rows import Row
from embellama.bulk.writers import writer_of
from embellama.errors import EmbeddingFailed, InputError
from embellama.outputs import Dtype, quantize
from embellama.vectors.stored import StoredVectors
from tests.vectors.conftest import write_jsonl, write_manifest

VECTORS = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
FAILED = (0, 4)


def written(folder: Path, suffix: str, dtype: Dtype = "float32", dimensions: int = 16) -> Path:
    """Write rows 10 to 18 as a run does, in parts of 3 rows; some fail."""
    path = folder / f"out.{suffix}"
    writer = writer_of(BulkJob(output=str(path), dtype=dtype, keep_columns=True), dimensions)
    vectors = quantize(VECTORS[:, :dimensions], dtype)
    data = writer.begin()
    for start in range(0, 9, 3):
        rows = [Row(10 + i, f"id {i}", "a", None, {"n": i}) for i in range(start, start + 3)]
        outcomes = [
            EmbeddingFailed(i, "it failed") if i in FAILED else Embedded(vectors[i], 1, 0)
            for i in range(start, start + 3)
        ]
        data = [before + more for before, more in zip(data, writer.part(rows, outcomes), strict=True)]
    for file, content in zip(writer.paths(path), data, strict=True):
        file.with_name(file.name + ".partial").write_bytes(content)
        finished = writer.finish(file.with_name(file.name + ".partial")) if file == path else None
        (finished or file.with_name(file.name + ".partial")).rename(file)
    path.with_name(path.name + ".partial").unlink(missing_ok=True)
    write_manifest(path, options={"dtype": dtype, "dimensions": dimensions})
    return path


@pytest.mark.parametrize("n_rows", [1, 4, 100])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow", "npy"])
def test_every_format_gives_the_vectors_of_rows_that_did_not_fail(tmp_path: Path, suffix: str, n_rows: int) -> None:
    path = written(tmp_path, suffix).rename(tmp_path / "without-a-name")
    if suffix == "npy":
        (tmp_path / "out.npy.rows.jsonl").rename(tmp_path / "without-a-name.rows.jsonl")
    stored = StoredVectors(path)
    blocks = list(stored.blocks(n_rows))
    good = [i for i in range(9) if i not in FAILED]
    assert stored.dim == 16
    assert max(len(block.indices) for block in blocks) <= n_rows
    assert np.concatenate([block.indices for block in blocks]).tolist() == [10 + i for i in good]
    assert np.concatenate([block.places for block in blocks]).tolist() == good
    assert [id for block in blocks for id in block.ids] == [f"id {i}" for i in good]
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), VECTORS[good])
    told = stored.describe([12, 17])
    assert told == {12: ("id 2", {"n": 2}), 17: ("id 7", {"n": 7})}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "npy"])
@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_numbers_of_any_dtype_point_where_the_vector_does(tmp_path: Path, suffix: str, dtype: Dtype) -> None:
    stored = StoredVectors(written(tmp_path, suffix, dtype, 12))
    block = np.concatenate([block.rows for block in stored.blocks()])
    wanted = VECTORS[[i for i in range(9) if i not in FAILED], :12]
    if dtype in ("binary", "ubinary"):
        np.testing.assert_array_equal(block, np.where(wanted > 0, 1, -1))
    else:
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        np.testing.assert_allclose(
            block, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-3 if dtype == "float16" else 0.02
        )
    assert (stored.take is not None) == (suffix == "npy")
    if stored.take:
        np.testing.assert_array_equal(stored.take(np.array([2, 5])), next(stored.blocks()).rows[[1, 3]])


def test_floats_need_no_manifest(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", VECTORS.astype(np.float64))
    (block,) = StoredVectors(tmp_path / "mine.npy").blocks()
    assert block.indices.tolist() == list(range(9))
    np.testing.assert_array_equal(block.rows, VECTORS)


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


def replaced(path: Path, old: str, new: str) -> Path:
    path.write_text(path.read_text().replace(old, new))
    return path


def parquet(path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def saved(path: Path, array: object) -> Path:
    np.save(path, array)  # type: ignore[arg-type]
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


LINE = json.dumps({"index": 0, "id": None, "status": "ok", "embedding": [1.0, 0.0]}) + "\n"
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none", "none cannot be read: No such file"),
    "a folder": (lambda folder: folder, "cannot be read: Is a directory"),
    "empty": (lambda folder: text(folder / "x", ""), "x is empty"),
    "of another kind": (lambda folder: text(folder / "x", "a,b\n"), "x is no output of embellama bulk"),
    "other JSON": (lambda folder: text(folder / "x", '{"a": 1}\n'), "x: line 1 is no row of an output"),
    "an unfinished run": (
        lambda folder: text(folder / "x.partial", LINE).with_name("x"),
        "x is not finished: its run was ended; embellama bulk goes on with --resume",
    ),
    "a partial file": (lambda folder: text(folder / "x.partial", LINE), "x.partial is not finished"),
    "half a Parquet": (lambda folder: cut(written(folder, "parquet")), "out.parquet cannot be read"),
    "half an Arrow": (lambda folder: cut(written(folder, "arrow")), "out.arrow cannot be read"),
    "half an .npy": (lambda folder: cut(written(folder, "npy")), "out.npy is cut: it has 504 bytes of 704"),
    "half JSON lines": (lambda folder: cut(written(folder, "jsonl")), "out.jsonl is cut: its line 9 has no end"),
    "lines missing": (
        lambda folder: (
            replaced(written(folder, "npy").with_name("out.npy.rows.jsonl"), '{"index":18', "").parent / "out.npy"
        ),
        "line 9 is no row",
    ),
    "too many lines": (
        lambda folder: text(saved(folder / "x.npy", VECTORS).with_name("x.npy.rows.jsonl"), LINE * 10).with_name(
            "x.npy"
        ),
        "x.npy has 9 rows and .*x.npy.rows.jsonl has 10 lines",
    ),
    "no rows": (lambda folder: saved(folder / "x.npy", VECTORS[:0]), "x.npy: it has no rows"),
    "all failed": (
        lambda folder: write_jsonl(folder / "x", VECTORS, failed=tuple(range(9))),
        "x: all of its 9 rows failed",
    ),
    "not a number": (
        lambda folder: saved(folder / "x.npy", np.where(np.arange(9)[:, None] == 3, np.nan, VECTORS)),
        "x.npy: the vector of row 3 is not finite",
    ),
    "ragged": (
        lambda folder: text(folder / "x", LINE + LINE.replace("1.0, ", "")),
        "x: line 2 has a vector of 1 numbers; those before have 2",
    ),
    "one dimension": (lambda folder: saved(folder / "x.npy", VECTORS[0]), r"holds float32 of shape \(16,\)"),
    "objects": (lambda folder: saved(folder / "x.npy", np.array([["a"]])), "holds <U1 of shape"),
    "bytes without a manifest": (
        lambda folder: saved(folder / "x.npy", np.ones((2, 2), np.int8)),
        "x.npy holds whole numbers, and there is no x.npy.manifest.json beside it",
    ),
    "another Parquet": (lambda folder: parquet(folder / "x", {"index": [1]}), "it has no column 'id'"),
    "lists of any length": (
        lambda folder: parquet(folder / "x", {"index": [1], "id": ["a"], "status": ["ok"], "embedding": [[1.0]]}),
        "its column 'embedding' is list<.*>; it must be a list of fixed size",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_finished_output_is_named(tmp_path: Path, what: str) -> None:
    make, says = WRONG[what]
    with pytest.raises(InputError, match=says):
        list(StoredVectors(make(tmp_path)).blocks())


def test_a_run_that_was_ended_is_not_read_even_where_an_older_output_is(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "out.jsonl", VECTORS)
    write_manifest(path, state="running")
    with pytest.raises(InputError, match="is not finished"):
        StoredVectors(path)
