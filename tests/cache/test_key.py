"""Keys tell apart what differs, and nothing else."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from embellama import EngineConfig
from embellama.backend import ANYONE, Caller
from embellama.batch import RowKind
from embellama.cache import key as keys
from embellama.cache.key import RowKeys, weights_hash
from embellama.errors import ModelLoadError
from embellama.gguf.weights import Weights
from tests.tiny import write_bert

TEXT = np.array([1, 2, 3], np.int32)


def test_each_part_makes_another_key(tiny_path: str) -> None:
    config = EngineConfig(model_path=tiny_path).checked()
    weights = Weights(config, vocab_only=True)

    def key(config: EngineConfig = config, content: bytes = b"1", kind: RowKind = RowKind.TEXT, **who: object) -> bytes:
        caller = Caller(**who) if who else ANYONE  # type: ignore[arg-type]
        return RowKeys.of_model(config, weights, content).of([TEXT], kind, caller)[0]

    def but(**settings: object) -> EngineConfig:
        return msgspec.structs.replace(config, **settings)

    different = [
        key(),
        key(but(normalization="none")),
        key(content=b"2"),
        key(kind=RowKind.POOLED),
        key(kind=RowKind.TOKEN),
        key(name="ann", shares_cache=False),
        key(name="bob", shares_cache=False),
    ]
    assert len({*different}) == len(different)
    assert key() == key(but(n_ctx=32, num_workers=7, compute="llama", model_name="x", cache_bytes=1)) == key(name="ann")
    weights.pooling = "cls"
    assert key() not in different


def test_the_context_counts_where_the_file_has_rotations_for_long_ones(tiny_path: str) -> None:
    config = EngineConfig(model_path=tiny_path).checked()
    weights = Weights(config, vocab_only=True)
    weights.header.tensors["rope_factors_long.weight"] = "f32"
    short, long = (
        RowKeys.of_model(msgspec.structs.replace(config, n_ctx=n_ctx), weights, b"").of([TEXT], RowKind.TEXT, ANYONE)
        for n_ctx in (16, 32)
    )
    assert short != long


def test_texts_cannot_run_into_each_other() -> None:
    def key(*ids: int) -> bytes:
        return RowKeys(b"m").of([np.array(ids, np.int32)], RowKind.TEXT, ANYONE)[0]

    made = [key(1), key(1, 0), key(0, 1), key(256), key(1, 1)]
    assert len({*made}) == len(made)
    assert RowKeys(b"ab", b"c").of([TEXT], RowKind.TEXT, ANYONE) != RowKeys(b"a", b"bc").of(
        [TEXT], RowKind.TEXT, ANYONE
    )


def test_a_files_content_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(keys, "SMALL_FILE", 1)
    path, same, other = (tmp_path / f"{name}.gguf" for name in ("model", "same", "other"))
    write_bert(path)
    same.write_bytes(path.read_bytes())
    write_bert(other, gain=0.5)
    found = weights_hash(str(path))
    assert found == weights_hash(str(same)) != weights_hash(str(other))
    kept = list((tmp_path / "cache" / "embellama").iterdir())
    assert len(kept) == 3
    for file in kept:
        file.write_text("known")
    assert weights_hash(str(path)) == weights_hash(str(other)) != found
    other.replace(path)
    path.write_bytes(path.read_bytes())  # now another file, though of that name
    assert weights_hash(str(path)) != found


def test_all_parts_of_a_model_are_hashed(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    before = weights_hash(str(parts[0]))
    parts[1].write_bytes(b"GGUF2")
    assert weights_hash(str(parts[0])) != before
    parts[1].unlink()
    with pytest.raises(ModelLoadError, match="No such file"):
        weights_hash(str(parts[0]))
