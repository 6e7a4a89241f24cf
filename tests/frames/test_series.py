"""Columns of pandas, PyArrow and Polars, without expressions."""

import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from embellama import EmbeddingEngine, InputError
from embellama.frames import embed
from tests.conftest import ROOT, run

TEXTS = ["red", None, "green", "red"]


def rows(found: Any) -> list[Any]:
    return [None if row is None else [*row] for row in found]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("text", TEXTS),
        pd.Series(TEXTS, index=[4, 5, 6, 7], name="text"),
        pd.Series(TEXTS, dtype=pd.ArrowDtype(pa.string())),
        pd.Series(TEXTS, dtype="category"),
        pa.array(TEXTS),
        pa.array(TEXTS, pa.string_view()),
        pa.array(["x", *TEXTS])[1:].dictionary_encode(),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    ],
    ids=["polars", "pandas", "pandas of Arrow", "pandas of categories", "array", "view", "dictionary", "chunks"],
)
def test_a_column_comes_back_as_what_it_was(tiny_engine: EmbeddingEngine, column: Any) -> None:
    found = embed(column, tiny_engine)
    vectors = tiny_engine.embed_batch(None, ["red", "green"])
    if isinstance(column, pd.Series):
        assert isinstance(found, pd.Series)
        assert found.index.equals(column.index)
        assert found.name == column.name
        given = found.array.__arrow_array__().to_pylist()
    else:
        assert isinstance(found, type(column) if isinstance(column, pl.Series | pa.ChunkedArray) else pa.Array)
        given = (found.to_arrow() if isinstance(found, pl.Series) else found).to_pylist()
    for row, expected in zip(given, [vectors[0], None, vectors[1], vectors[0]], strict=True):
        assert (row is None) == (expected is None)
        if row is not None:
            np.testing.assert_allclose(row, expected, atol=2e-4)


def test_lists_and_structs_come_in_any_column(tiny_engine: EmbeddingEngine) -> None:
    given: Any = pa.array([["red", None], None, []])
    lists = embed(given, tiny_engine, as_struct=True).to_pylist()
    assert [each["n_tokens"] for each in lists[0] if each] == [3]
    assert lists[1:] == [None, []]
    structs = pd.Series([{"a": "red"}, {"a": "green"}], dtype=pd.ArrowDtype(pa.struct([("a", pa.string())])))
    assert len(embed(structs, tiny_engine, template="{a} {a}", dtype="int8").iloc[0]) == 32


def test_lists_of_one_length_are_lists(tiny_engine: EmbeddingEngine) -> None:
    column: Any = pa.array([["x", "x"], ["red", "green"], None, ["red", None]], pa.list_(pa.string(), 2))[1:]
    found = embed(column, tiny_engine)
    assert found.type == pa.large_list(pa.list_(pa.float32(), 32))
    assert [row and [item is None for item in row] for row in found.to_pylist()] == [
        [False, False],
        None,
        [False, True],
    ]


def test_a_column_of_objects_of_several_kinds_is_refused(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(InputError, match=r"column 'mixed' cannot be read as texts: .*int"):
        embed(pd.Series(["red", 3], dtype=object, name="mixed"), tiny_engine)


def test_a_column_without_a_name_has_none_in_errors(tiny_engine: EmbeddingEngine) -> None:
    with pytest.raises(InputError, match="column '', row 1 of 2 given together: the text is empty"):
        embed(pd.Series(["red", ""]), tiny_engine)


@pytest.mark.parametrize("column", [["red"], "red", 3, np.array(["red"]), pl.DataFrame({"a": ["red"]})])
def test_what_is_no_column_is_refused(tiny_engine: EmbeddingEngine, column: Any) -> None:
    with pytest.raises(InputError, match="no column of Polars, pandas or PyArrow"):
        embed(column, tiny_engine)


@pytest.mark.parametrize(("missing", "module"), [("pyarrow", "frames"), ("pyarrow", "polars"), ("polars", "polars")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(missing: str, module: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import embellama.{module}"
    result = run(sys.executable, "-c", code, cwd=ROOT)
    assert result.returncode == 1
    assert "pip install 'embellama[polars]'" in result.stderr.splitlines()[-1]


def test_ctrl_c_ends_waiting_at_once_beside_polars(tiny_path: str) -> None:
    code = f"""
from concurrent.futures import Future
import polars as pl
from embellama.frames import embed
from embellama.pool import Pool

def never(*arguments, **options):
    print("waiting", flush=True)
    return Future()

Pool.submit = never
embed(pl.Series(["red"]), {tiny_path!r})
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.5)  # by now it waits
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert told.endswith("KeyboardInterrupt\n")


def test_importing_embellama_imports_no_dataframes() -> None:
    code = "import sys, embellama; print({'polars', 'pyarrow', 'narwhals', 'pandas'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "set()\n"
