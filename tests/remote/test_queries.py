"""Queries are embedded by servers of the model that made an output."""

from pathlib import Path

import pytest

from embellama.errors import ConfigError
from embellama.remote.config import RemoteConfig
from embellama.vectors.queries import embed_for
from embellama.vectors.search import top_k
from embellama.vectors.stored import StoredVectors
from tests.remote.conftest import StartFaulty, computed


def test_servers_that_tell_no_hash_are_known_by_a_vector(faulty: StartFaulty, tmp_path: Path) -> None:
    first, other = faulty(), faulty(model="n")
    computed(tmp_path, ["red", "green", "blue"], first)
    stored = StoredVectors(tmp_path / "out.jsonl")
    rows = embed_for(stored, RemoteConfig(url=(first.url,)), ["blue", "red", "blue"], prompt=None, what="query")
    assert [matches.indices[0] for matches in top_k(rows, stored.blocks(), 1)] == [2, 0, 2]
    with pytest.raises(ConfigError, match="made with another model: 'm', whose first numbers of a text's vector are"):
        embed_for(stored, RemoteConfig(url=(other.url,)), ["blue"], prompt=None, what="query")
