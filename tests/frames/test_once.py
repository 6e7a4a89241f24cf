"""Each text is computed once, whatever slices and threads it comes in."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import embellama.polars  # noqa: F401
from embellama import EmptyInput, ModelError
from embellama.frames import embedding
from embellama.frames.models import EngineModel, Found
from embellama.frames.open_texts import OpenTexts
from embellama.options import EmbedOptions


def embed(column: str, model: Any, **options: Any) -> pl.Expr:
    made: pl.Expr = pl.col(column).embellama.embed(model, **options)  # type: ignore[attr-defined]
    return made


def test_texts_of_all_slices_are_computed_once(tiny_path: str, computed: list[int]) -> None:
    texts = [f"one {'abcde'[number % 5]} two {'fghijklmno'[number % 50 // 5]}" for number in range(1000)]
    with pl.Config(streaming_chunk_size=64):
        found = pl.LazyFrame({"text": texts}).select(embed("text", tiny_path)).collect(engine="streaming")
    assert len(found) == 1000
    assert sum(computed) == 50


def test_two_expressions_of_the_same_texts_compute_them_once(tiny_path: str, computed: list[int]) -> None:
    frame = pl.LazyFrame({"text": [f"three {letter}" for letter in "abcdefghijklmnopqrst"]})
    frame.select(a=embed("text", tiny_path), b=embed("text", tiny_path, on_error="null")).collect()
    frame.select(embed("text", tiny_path, dtype="int8", dimensions=8)).collect()
    assert sum(computed) == 20


def test_parts_of_a_column_are_put_together(tiny_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART_BYTES", 3 * 4 * 32)  # three texts
    texts = [None, *(f"{'one ' * (n % 7)}two" for n in range(20)), "", "red", None]
    found = pl.DataFrame({"text": texts}).select(embed("text", tiny_engine, on_error="null"))["text"].to_list()
    rows = iter(tiny_engine.embed_batch(None, [text for text in texts if text]))
    for each, text in zip(found, texts, strict=True):
        assert (each is None) == (not text)
        if text:
            np.testing.assert_allclose(each, next(rows), atol=2e-4)


class Computer:
    """Finds one number for each text, when it may: their lengths."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def slowly(self, texts: Sequence[str]) -> Found:
        self.begun.set()
        assert self.go_on.wait(30)
        return self.at_once(texts)

    def at_once(self, texts: Sequence[str]) -> Found:
        self.asked += texts
        errors = {i: EmptyInput(i) for i, text in enumerate(texts) if not text}
        lengths = np.array([[len(text)] for text in texts], np.float32).reshape(-1, 1)
        counts = np.array([len(text) for text in texts], np.int32)
        return Found(lengths, counts, counts, dict(errors))


def test_a_slice_waits_for_what_another_one_computes() -> None:
    computer, table = Computer(), OpenTexts()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(table.find, ["a", "", "bbb"], computer.slowly)
        assert computer.begun.wait(30)
        second = pool.submit(table.find, ["bbb", "cc", ""], computer.at_once)
        while "cc" not in computer.asked:
            pass
        computer.go_on.set()
        assert first.result().vectors.tolist() == [[1], [0], [3]]
        found = second.result()
    assert found.vectors.tolist() == [[3], [2], [0]]
    assert {*found.errors} == {2}
    assert sorted(computer.asked) == ["", "a", "bbb", "cc"]


def test_a_slice_computes_what_another_one_failed_with() -> None:
    computer, table = Computer(), OpenTexts()

    def failing(texts: Sequence[str]) -> Found:
        computer.slowly(texts)
        raise ValueError("another's")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(table.find, ["a", "bbb"], failing)
        assert computer.begun.wait(30)
        second = pool.submit(table.find, ["bbb"], computer.at_once)
        computer.go_on.set()
        with pytest.raises(ValueError, match="another's"):
            first.result()
        assert second.result().vectors.tolist() == [[3]]
    assert table.find(["bbb"], computer.at_once).vectors.tolist() == [[3]]


def test_vectors_of_another_length_than_was_told_are_an_error(tiny_engine: Any) -> None:
    class Replaced(EngineModel):
        def dim(self, options: EmbedOptions) -> int:
            return 16

    with pytest.raises(ModelError, match="the model gave vectors of 32 numbers, not of 16: it was changed"):
        embedding.ColumnEmbedder(Replaced(tiny_engine)).embed(pa.array(["red"]), "text")
