"""Texts are embedded by the model that made an output, as many numbers as it has."""

from pathlib import Path

import numpy as np
import pytest

from embellama.config import EngineConfig
from embellama.errors import InputError
from embellama.vectors.queries import embed_for
from embellama.vectors.stored import StoredVectors
from tests.vectors.conftest import write_jsonl, write_manifest


def test_a_text_without_a_vector_is_named(tiny_path: str, tmp_path: Path) -> None:
    stored = StoredVectors(write_jsonl(tmp_path / "out.jsonl", np.ones((2, 32), np.float32)))
    config = EngineConfig(model_path=tiny_path, num_workers=1)
    for texts, says in (
        (["red", "poison"], "label 1 has no vector: the model failed on the text: its vector is not finite"),
        (["red " * 100], "label 0 has no vector: the text has 102 tokens; the limit is 64"),
        (["red", "\n"], "label 1 is empty"),
    ):
        with pytest.raises(InputError, match=says):
            embed_for(stored, config, texts, prompt=None, what="label")


def test_a_query_has_the_numbers_of_the_output(tiny_path: str, tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    np.save(path, np.zeros((2, 4), np.uint8))
    write_manifest(path, options={"dtype": "ubinary", "dimensions": 29})
    stored = StoredVectors(path)
    config = EngineConfig(model_path=tiny_path, num_workers=1)
    rows = embed_for(stored, config, ["red"], prompt="query", what="query")
    assert rows.shape == (1, stored.dim) == (1, 29)
    write_manifest(path, options={"dtype": "ubinary", "dimensions": 33})
    with pytest.raises(InputError, match="dimensions is 33; this model gives 1 to 32"):
        embed_for(StoredVectors(path), config, ["red"], prompt=None, what="query")
