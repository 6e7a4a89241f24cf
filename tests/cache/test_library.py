"""The cache in an engine: as its settings say, and of the file that is loaded."""

import gc
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embellama import ConfigError, EmbeddingEngine, EngineConfig
from embellama.backend import LayerState
from embellama.batch import Rows
from embellama.cache.flights import Asked, Flight
from embellama.pool import Unloading
from tests.conftest import TinyModel
from tests.tiny import write_bert


def engine(path: str | Path, **settings: Any) -> EmbeddingEngine:
    config = EngineConfig(
        model_path=str(path), model_name="tiny", num_workers=1, n_threads=1, max_batch_tokens=192, **settings
    )
    return EmbeddingEngine(config)


def layers(engine: EmbeddingEngine) -> dict[str, LayerState]:
    return {layer.name: layer for layer in engine._models.get("tiny").backend.state.cache}


def test_an_engine_keeps_rows_in_memory_unless_it_is_told_not_to(tiny_path: str) -> None:
    with engine(tiny_path) as known, engine(tiny_path, cache_bytes=0) as computed:
        for texts in (["red", "green"], ["green", "blue", "red"]):
            np.testing.assert_allclose(known.embed_batch(None, texts), computed.embed_batch(None, texts), atol=1e-4)
        assert (layers(known)["memory"].n_hits, layers(known)["memory"].n_misses) == (2, 3)
        assert not layers(computed)


async def test_tasks_share_rows_with_threads(tiny_path: str) -> None:
    with engine(tiny_path) as made:
        row = made.embed(None, "red")
        np.testing.assert_array_equal(await made.aembed(None, "red"), row)
        assert layers(made)["memory"].n_hits == 1


def test_vectors_of_tokens_and_chunks_share_an_entry(tiny_path: str) -> None:
    with engine(tiny_path) as made:
        tokens = made.embed_tokens(None, "red green blue")
        chunks = made.embed_chunks(None, "red green blue", chunk_size=1).vectors
        assert layers(made)["memory"].n_hits == 1
        assert len(tokens) == 5
        assert len(chunks) == 3


def test_scores_of_pairs_are_kept(tiny: TinyModel) -> None:
    with engine(tiny("bert-reranker")) as made:
        first = made.rerank(None, "red", ["green", "blue"])
        second = made.rerank(None, "red", ["blue", "one", "green"])
        assert layers(made)["memory"].n_hits == 2
        scores = {ranked.index: ranked.relevance_score for ranked in second.results}
        assert {ranked.relevance_score for ranked in first.results} == {scores[0], scores[2]}


def test_rows_in_a_file_outlive_the_engine_and_belong_to_one_model(tiny_path: str, tmp_path: Path) -> None:
    settings = {"cache_file": str(tmp_path / "rows.sqlite"), "cache_bytes": 0}
    copy, other = tmp_path / "copy.gguf", write_bert(tmp_path / "other.gguf", gain=0.5)
    copy.write_bytes(Path(tiny_path).read_bytes())
    with engine(tiny_path, **settings) as made:
        row = made.embed(None, "red")
    with engine(copy, **settings) as made:
        np.testing.assert_array_equal(made.embed(None, "red"), row)
        assert layers(made)["sqlite"].n_hits == 1
    for path, more in ((other, {}), (copy, {"normalization": "none"}), (copy, {"pooling": "cls"})):
        with engine(path, **settings, **more) as made:
            assert np.abs(made.embed(None, "red") - row).max() > 0.01
            assert layers(made)["sqlite"].n_hits == 0


@pytest.mark.parametrize("cache_file", ["", "rows.sqlite"])
def test_a_model_that_is_loaded_again_from_another_file_gives_its_rows(tmp_path: Path, cache_file: str) -> None:
    path = write_bert(tmp_path / "model.gguf")
    with engine(path, cache_file=cache_file and str(tmp_path / cache_file)) as made:
        old = made.embed(None, "red")
        write_bert(tmp_path / "new.gguf", gain=0.5).replace(path)
        made.reload_model("tiny")
        new = made.embed(None, "red")
        assert np.abs(new - old).max() > 0.01
    with engine(path, cache_bytes=0) as plain:
        np.testing.assert_allclose(plain.embed(None, "red"), new, atol=1e-4)


@pytest.mark.parametrize("how", ["call", "task", "stream"])
async def test_one_who_waited_in_vain_while_the_model_was_unloaded_asks_again(tiny_path: str, how: str) -> None:
    with engine(tiny_path) as made:
        model = made._models.get("tiny")
        around, failed = model.backend, Future[Rows]()
        failed.set_exception(Unloading("the model is being unloaded"))

        def once(*_: object, **__: object) -> "Future[Rows]":
            model.backend = around
            return failed

        model.backend = SimpleNamespace(submit=once)
        if how == "call":
            row = made.embed(None, "red")
        elif how == "task":
            row = await made.aembed(None, "red")
        else:
            [row] = made.embed_stream(None, ["red"])
        np.testing.assert_array_equal(row, made.embed(None, "red"))


def test_a_layer_that_cannot_be_used_leaves_nothing_behind(tiny_path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache_file is "):
        engine(tiny_path, cache_file=str(tmp_path))
    with engine(tiny_path) as made:
        made.embed(None, "red")


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_nothing_of_a_call_is_left_for_the_collector(tiny_path: str, cache_bytes: int) -> None:
    def left() -> list[str]:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            embedder.embed_batch(None, ["red", "blue", "red", "green"])
            embedder.embed_batch(None, ["red", "one"])
            gc.collect()
            return [type(each).__name__ for each in gc.garbage if isinstance(each, Future | Asked | Flight)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    with engine(tiny_path, cache_bytes=cache_bytes) as embedder:
        assert left() == []
