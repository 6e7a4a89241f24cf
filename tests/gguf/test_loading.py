"""Models that come and go: many at once, a ceiling on memory, files that change, and files that are none."""

import gc
import itertools
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from embellama import (
    ConfigError,
    EmbeddingEngine,
    EngineConfig,
    ModelError,
    ModelLoadError,
    ModelNotFound,
    Unavailable,
)
from embellama.gguf.header import Header
from embellama.registry import LoadedModel
from tests.attempts import attempts
from tests.tiny import ARCHITECTURES, write_bert


def named(path: str | Path, name: str = "tiny") -> EngineConfig:
    return EngineConfig(model_path=str(path), model_name=name, num_workers=1, n_threads=1)


def replace(path: str | Path, gain: float) -> None:
    """Put another model in place of a file, as it should be done: by renaming."""
    os.replace(write_bert(Path(f"{path}.new"), gain=gain), path)


@pytest.fixture
def own_path(tmp_path: Path) -> str:
    """A tiny BERT that a test may change."""
    return str(write_bert(tmp_path / "tiny.gguf"))


# ---- many models


def test_two_models_live_side_by_side_and_unload_apart(tiny_path: str) -> None:
    with EmbeddingEngine() as engine:
        engine.load_model(EngineConfig(model_path=tiny_path, model_name="a", num_workers=1))
        engine.load_model(EngineConfig(model_path=tiny_path, num_workers=1))
        assert engine.models == ["a", "tiny"]
        with pytest.raises(ConfigError, match="'a': a model of that name is loaded already"):
            engine.load_model(EngineConfig(model_path=tiny_path, model_name="a"))
        np.testing.assert_array_equal(engine.embed("a", "red"), engine.embed("tiny", "red"))
        engine.unload_model("a")
        assert engine.models == ["tiny"]
        with pytest.raises(ModelNotFound):
            engine.embed("a", "red")


def test_an_unknown_model_is_named_with_those_loaded(tiny_path: str) -> None:
    with EmbeddingEngine(named(tiny_path)) as engine:
        for use in (engine.model_info, engine.unload_model, engine.reload_model, lambda name: engine.embed(name, "a")):
            with pytest.raises(ModelNotFound, match="'huge' is not loaded; loaded: 'tiny'"):
                use("huge")


def test_the_default_model_is_the_first_until_another_is_set(tiny_path: str, tmp_path: Path) -> None:
    other = ARCHITECTURES["bert-cls"].write(tmp_path / "other.gguf")
    with EmbeddingEngine() as engine:
        assert engine.default_model is None
        with pytest.raises(ModelNotFound, match="loaded: none"):
            engine.embed(None, "red")
        engine.load_model(named(tiny_path, "a"))
        engine.load_model(named(other, "b"))
        assert engine.default_model == "a"
        engine.default_model = "b"
        np.testing.assert_array_equal(engine.embed(None, "red"), engine.embed("b", "red"))
        with pytest.raises(ModelNotFound):
            engine.default_model = "c"
        engine.unload_model("b")
        assert engine.default_model == "a"
        np.testing.assert_array_equal(engine.embed(None, "red"), engine.embed("a", "red"))


@pytest.mark.parametrize("name", ["bert-mean", "qwen3", "nomic-bert-moe", "bert-reranker"])
def test_model_info_says_what_the_model_is(name: str, tmp_path: Path) -> None:
    path = str(ARCHITECTURES[name].write(tmp_path / "model.gguf"))
    tensors = gguf.GGUFReader(path).tensors
    with EmbeddingEngine(named(path)) as engine:
        info = engine.model_info()
        pooling = ARCHITECTURES[name].pooling.name.lower()
        assert (info.name, info.path, info.n_ctx, info.n_ctx_train) == ("tiny", path, 64, 64)
        assert (info.pooling, info.quantization, info.normalization) == (pooling, "f32", "l2")
        assert info.architecture == {"qwen3": "qwen3", "nomic-bert-moe": "nomic-bert-moe"}.get(name, "bert")
        assert info.dim == (1 if pooling == "rank" else len(engine.embed(None, "red")))
        assert info.n_bytes == sum(int(tensor.n_bytes) for tensor in tensors)
        assert (info.loaded, info.changed) == (True, False)


def test_model_info_names_the_prompts(tiny_path: str) -> None:
    with EmbeddingEngine(named(tiny_path, "nomic-embed-text-v1.5")) as engine:
        assert {"query", "document"} <= set(engine.model_info().prompts)


def test_a_closed_engine_refuses_and_leaves_no_thread(tiny_path: str) -> None:
    before = threading.active_count()
    engine = EmbeddingEngine(named(tiny_path, "a"))
    engine.load_model(named(tiny_path, "b"))
    assert threading.active_count() == before + 2
    engine.close()
    engine.close()
    assert threading.active_count() == before
    for use in (lambda: engine.load_model(named(tiny_path)), lambda: engine.embed("a", "red")):
        with pytest.raises(Unavailable, match="the engine is closed"):
            use()


def test_a_relative_path_means_the_same_file_wherever_the_process_goes(
    own_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with EmbeddingEngine(named("tiny.gguf")) as engine:
        monkeypatch.chdir("/")
        engine.embed("tiny", "red")
        engine.reload_model("tiny")
        assert engine.model_info().path == own_path
    assert not caplog.records


def test_unloading_gives_memory_back(tiny_path: str) -> None:
    process = psutil.Process()

    def load_and_unload(times: int) -> int:
        for _ in range(times):
            with EmbeddingEngine(named(tiny_path)) as engine:
                engine.embed("tiny", "red")
        gc.collect()
        return int(process.memory_info().rss)

    before = load_and_unload(20)
    assert load_and_unload(40) < before + 20e6


def test_a_pool_whose_threads_do_not_start_leaves_none(tiny_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, start, started = threading.active_count(), threading.Thread.start, itertools.count()

    def fail_third(thread: threading.Thread) -> None:
        if next(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_third)
    with pytest.raises(RuntimeError, match="can't start"):
        EmbeddingEngine(EngineConfig(model_path=tiny_path, num_workers=4))
    assert threading.active_count() == before


# ---- the memory ceiling


@pytest.fixture
def crowded(tiny_path: str) -> Iterator[EmbeddingEngine]:
    """An engine with three models, a, b and c, and room for two."""
    with EmbeddingEngine(max_model_bytes=2 * Header(tiny_path).n_bytes) as engine:
        for name in "abc":
            engine.load_model(named(tiny_path, name))
        yield engine


def in_memory(engine: EmbeddingEngine) -> list[str]:
    return [name for name in engine.models if engine._models._entries[name].model]


def test_the_model_used_longest_ago_makes_room(crowded: EmbeddingEngine) -> None:
    assert crowded.models == ["a", "b", "c"]
    assert in_memory(crowded) == ["b", "c"]
    for name, left in (("b", "bc"), ("a", "ab"), ("b", "ab"), ("c", "bc"), ("a", "ac")):
        crowded.embed(name, "red")
        assert in_memory(crowded) == list(left)
    assert [crowded.model_info(name).loaded for name in "abc"] == [True, False, True]


def test_a_model_that_made_room_gives_the_same_vectors_again(crowded: EmbeddingEngine) -> None:
    rows = [crowded.embed(name, "red green") for name in "abcabc"]
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_models_that_made_room_can_be_unloaded_and_reloaded(crowded: EmbeddingEngine) -> None:
    before = threading.active_count()
    crowded.reload_model("a")
    assert in_memory(crowded) == ["a", "c"]
    crowded.unload_model("b")
    assert crowded.models == ["a", "c"]
    with pytest.raises(ModelNotFound):
        crowded.embed("b", "red")
    assert threading.active_count() == before


def test_a_model_that_is_too_large_alone_is_refused(tiny_path: str) -> None:
    n_bytes = Header(tiny_path).n_bytes
    with pytest.raises(
        ConfigError, match=f"max_model_bytes is {n_bytes - 1}, but model 'tiny' alone takes {n_bytes} bytes"
    ):
        EmbeddingEngine(named(tiny_path), max_model_bytes=n_bytes - 1)
    EmbeddingEngine(named(tiny_path), max_model_bytes=n_bytes).close()


@pytest.mark.parametrize("wrong", [0, -1, "1GB", 1.5])
def test_a_ceiling_that_is_no_number_of_bytes_is_refused(wrong: int) -> None:
    with pytest.raises(ConfigError, match=r"max_model_bytes is .*; it must be a number of bytes"):
        EmbeddingEngine(max_model_bytes=wrong)


def test_reloading_a_file_that_has_grown_keeps_to_the_ceiling(own_path: str, tiny_path: str) -> None:
    n_bytes = Header(tiny_path).n_bytes
    with EmbeddingEngine(max_model_bytes=2 * n_bytes) as engine:
        engine.load_model(named(tiny_path, "a"))
        engine.load_model(named(own_path, "b"))
        os.replace(write_bert(Path(own_path + ".new"), more_words=[f"word{i}" for i in range(100)]), own_path)
        engine.reload_model("b")
        assert in_memory(engine) == ["b"]
        os.replace(write_bert(Path(own_path + ".new"), more_words=[f"word{i}" for i in range(1000)]), own_path)
        with pytest.raises(ConfigError, match="'b' alone takes"):
            engine.reload_model("b")
        assert engine.embed("b", "red").shape == (32,)


def test_a_model_and_its_successor_keep_to_the_ceiling_together(own_path: str, tiny_path: str) -> None:
    n_bytes, most = Header(tiny_path).n_bytes, 0
    load = LoadedModel.__init__

    def watch(model: LoadedModel, config: Any) -> None:
        nonlocal most
        load(model, config)
        most = max(most, 1 + len(in_memory(engine)))

    with pytest.MonkeyPatch.context() as patch, EmbeddingEngine(max_model_bytes=2 * n_bytes) as engine:
        for name, path in (("a", tiny_path), ("b", own_path)):
            engine.load_model(named(path, name))
        patch.setattr(LoadedModel, "__init__", watch)
        engine.reload_model("b")
        assert (most, in_memory(engine)) == (2, ["b"])
        engine.embed("a", "red")
        assert (most, in_memory(engine)) == (2, ["a", "b"])


def test_a_model_that_fills_the_ceiling_makes_room_for_its_successor(own_path: str) -> None:
    with EmbeddingEngine(named(own_path), max_model_bytes=Header(own_path).n_bytes) as engine:
        before = engine.embed("tiny", "red")
        replace(own_path, gain=1)
        engine.reload_model("tiny")
        assert not np.allclose(engine.embed("tiny", "red"), before, atol=0.01)


# ---- files that change


def test_a_changed_file_is_noticed_once_and_reloaded_when_asked(
    own_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddingEngine(named(own_path)) as engine:
        before = engine.embed("tiny", "red")
        replace(own_path, gain=1)
        assert engine.model_info("tiny").changed
        threads = [threading.Thread(target=engine.embed, args=("tiny", "red")) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [record] = caplog.records
        assert (record.name, record.levelno) == ("embellama.registry", logging.WARNING)
        assert f"{own_path} has changed since model 'tiny' was loaded from it" in record.getMessage()
        np.testing.assert_array_equal(engine.embed("tiny", "red"), before)

        engine.reload_model("tiny")
        assert not engine.model_info("tiny").changed
        assert not np.allclose(engine.embed("tiny", "red"), before, atol=0.01)
        replace(own_path, gain=0.3)
        engine.embed("tiny", "red")
        assert len(caplog.records) == 2


def test_reloading_a_broken_or_missing_file_keeps_the_old_model(own_path: str) -> None:
    with EmbeddingEngine(named(own_path)) as engine:
        before = engine.embed("tiny", "red")
        Path(own_path + ".new").write_bytes(Path(own_path).read_bytes()[:-5000])
        os.replace(own_path + ".new", own_path)
        with pytest.raises(ModelLoadError):
            engine.reload_model("tiny")
        os.remove(own_path)
        with pytest.raises(ModelLoadError, match="No such file"):
            engine.reload_model("tiny")
        assert engine.model_info().changed
        np.testing.assert_array_equal(engine.embed("tiny", "red"), before)


def test_a_file_cut_under_a_loaded_model_is_an_error_until_it_is_mended(own_path: str) -> None:
    whole = Path(own_path).read_bytes()
    with EmbeddingEngine(named(own_path)) as engine:
        before = engine.embed("tiny", "red")
        os.truncate(own_path, 5000)
        # Reading its weights now would be SIGBUS.
        with pytest.raises(ModelError, match="was cut while model 'tiny' was loaded from it"):
            engine.embed("tiny", "red")
        Path(own_path + ".new").write_bytes(whole)
        os.replace(own_path + ".new", own_path)
        engine.reload_model("tiny")
        np.testing.assert_array_equal(engine.embed("tiny", "red"), before)


def test_a_file_that_changed_while_its_model_made_room_is_noticed(
    own_path: str, tiny_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddingEngine(named(own_path), max_model_bytes=Header(tiny_path).n_bytes) as engine:
        before = engine.embed("tiny", "red")
        engine.load_model(named(tiny_path, "other"))
        replace(own_path, gain=1)
        assert (engine.model_info("tiny").loaded, engine.model_info("tiny").changed) == (False, True)
        assert not np.allclose(engine.embed("tiny", "red"), before, atol=0.01)
        assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == ["the new file is loaded now"]
        assert not engine.model_info("tiny").changed


def test_a_model_reloaded_while_texts_are_read_still_gets_all_of_them(tiny_path: str) -> None:
    with EmbeddingEngine(named(tiny_path)) as engine:

        def texts() -> Iterator[str]:
            yield "red"
            engine.reload_model("tiny")
            yield "blue"

        assert engine.embed_batch("tiny", texts()).shape == (2, 32)
        assert len(engine.rerank("tiny", "red", texts()).results) == 2


def test_a_model_unloaded_while_texts_are_read_is_not_found(tiny_path: str) -> None:
    with EmbeddingEngine(named(tiny_path)) as engine:

        def texts() -> Iterator[str]:
            engine.unload_model("tiny")
            yield "red"

        with pytest.raises(ModelNotFound):
            engine.embed_batch("tiny", texts())


# ---- files in a hub's cache: snapshots/<commit>/model.gguf -> ../../blobs/<hash>


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "0a1b").mkdir(parents=True)
    write_bert(tmp_path / "blobs" / "old")
    link = tmp_path / "snapshots" / "0a1b" / "model.gguf"
    link.symlink_to("../../blobs/old")
    return link


def test_a_link_to_a_model_is_followed_and_watched(snapshot: Path) -> None:
    with EmbeddingEngine(EngineConfig(model_path=str(snapshot), num_workers=1)) as engine:
        assert engine.models == ["model"]
        before = engine.embed(None, "red")
        write_bert(snapshot.parents[2] / "blobs" / "new", gain=1)
        snapshot.unlink()
        snapshot.symlink_to("../../blobs/new")
        assert engine.model_info().changed
        engine.reload_model("model")
        assert not np.allclose(engine.embed(None, "red"), before, atol=0.01)


def test_a_dangling_link_is_refused(snapshot: Path) -> None:
    (snapshot.parents[2] / "blobs" / "old").unlink()
    with pytest.raises(ModelLoadError, match=r"model\.gguf: No such file"):
        EmbeddingEngine(EngineConfig(model_path=str(snapshot)))


# ---- files that are no models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "not a GGUF file: it starts with b'\\x89PNG'"),
        (b"", "not a GGUF file"),
        (b"FUGG" + bytes(1000), "not a GGUF file"),
        (b"GGUF", "its header is damaged"),
        (b"GGUF\x03\x00\x00\x00", "its header is damaged"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        EmbeddingEngine(EngineConfig(model_path=str(path)))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_at_all_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(ModelLoadError, match=r"model\.gguf: (it is not a file|Too many levels of symbolic links)"):
        EmbeddingEngine(EngineConfig(model_path=str(path)))


def test_a_chat_model_is_refused_and_says_what_it_is(tmp_path: Path) -> None:
    whole = ARCHITECTURES["qwen2"].write(tmp_path / "whole.gguf")
    writer = gguf.GGUFWriter(tmp_path / "chat.gguf", "qwen2")
    template = {"tokenizer.chat_template": MetadataDetails(gguf.GGUFValueType.STRING, "{{ messages }}")}
    copy_with_new_metadata(gguf.GGUFReader(whole), writer, template, ["qwen2.pooling_type"])
    with pytest.raises(ModelLoadError, match=r"names no pooling type.*it has a chat template, so it may be no embed"):
        EmbeddingEngine(EngineConfig(model_path=str(tmp_path / "chat.gguf")))


def test_a_model_without_pooling_is_refused(tmp_path: Path) -> None:
    path = str(write_bert(tmp_path / "none.gguf", pooling=None))
    with pytest.raises(ModelLoadError, match="names no pooling type"):
        EmbeddingEngine(EngineConfig(model_path=path))


def test_a_file_with_a_vocabulary_alone_is_refused(tiny_path: str, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(tiny_path)
    reader.tensors.clear()
    copy_with_new_metadata(reader, gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "bert"), {}, [])
    with pytest.raises(ModelLoadError, match="it has a vocabulary, but no weights"):
        EmbeddingEngine(EngineConfig(model_path=str(tmp_path / "vocabulary.gguf")))


# ---- files that would end the process


def test_a_file_cut_anywhere_is_refused(tiny_path: str, tmp_path: Path) -> None:
    whole, reader = Path(tiny_path).read_bytes(), gguf.GGUFReader(tiny_path)
    fields = list(reader.fields.values())
    first, last = reader.tensors[0], reader.tensors[-1]
    n_padding = (-last.n_bytes) % reader.alignment
    places = {
        "magic": [1, 4],
        "header": [5, 8, 12, 16, 23, 24],
        "metadata": [n for field in fields for n in (int(field.offset), int(field.offset) + 9) if n > 24],
        "tensor list": [n for t in reader.tensors[::7] for n in (int(t.field.offset), int(t.field.offset) + 20)],
        "data": [int(first.data_offset), int(first.data_offset) + 1, int(last.data_offset), len(whole) - n_padding - 1],
    }
    paths = []
    for where, ends in places.items():
        for end in ends:
            paths.append(tmp_path / f"{where}-{end}.gguf")
            paths[-1].write_bytes(whole[:end])
    assert len(paths) > 50
    for name, outcome in attempts(paths).items():
        assert outcome.startswith("ModelLoadError: cannot load"), (name, outcome)


def test_random_bytes_in_a_header_never_end_the_process(tmp_path: Path) -> None:
    paths, choose = [], random.Random(0)
    for name in ("bert-mean", "modern-bert", "qwen3"):
        path = ARCHITECTURES[name].write(tmp_path / f"{name}.gguf")
        n_header = int(gguf.GGUFReader(path).data_offset)
        for i in range(150):
            damaged = bytearray(path.read_bytes())
            for _ in range(choose.choice((1, 2, 8))):
                damaged[choose.randrange(4, n_header)] = choose.randrange(256)
            paths.append(tmp_path / f"{name}-{i}.gguf")
            paths[-1].write_bytes(damaged)
    outcomes = attempts(paths)
    assert len(outcomes) == 450
    known = ("fine", "ModelLoadError: ", "ConfigError: ", "InputError", "TextTooLong: ", "EmbeddingFailed: ")
    for name, outcome in outcomes.items():
        assert outcome.startswith(known), (name, outcome)
    assert sum(outcome.startswith("ModelLoadError") for outcome in outcomes.values()) > 300


# Each of these ended the process: an assertion of llama.cpp's or ggml's, a division by zero, or a wild read.
FATAL: list[tuple[str, str, str, float]] = [
    ("bert-mean", "bert.block_count", "it says it has 0 layers", 0),
    ("bert-mean", "bert.block_count", "it says it has 4294967295 layers", 2**32 - 1),
    ("bert-mean", "bert.attention.layer_norm_epsilon", "its layer_norm_epsilon is -1.0", -1),
    ("qwen3", "qwen3.attention.layer_norm_rms_epsilon", "its layer_norm_rms_epsilon is nan", float("nan")),
    ("nomic-bert-moe", "nomic-bert-moe.expert_count", "it says it uses 2 of 65536 experts", 65536),
    ("nomic-bert-moe", "nomic-bert-moe.expert_used_count", "it says it uses 7 of 4 experts", 7),
    ("modern-bert", "modern-bert.attention.head_count", "it says it has no attention heads", 0),
    ("modern-bert", "modern-bert.attention.head_count", "which are not those of", 5),
    ("qwen2", "qwen2.attention.key_length", "keys and values differ in length", 7),
    ("qwen2", "qwen2.attention.head_count", "which are not those of 2 heads", 2),
    ("eurobert", "eurobert.attention.key_length", "keys and values differ in length", 7),
    ("modern-bert", "modern-bert.attention.sliding_window_pattern", "there must be local and global ones", 1),
    ("gemma-embedding", "gemma-embedding.attention.sliding_window_pattern", "there must be local and global", 7),
    ("gemma-embedding-dense", "gemma-embedding.dense_2_feat_in", "its dense_2_feat_in is 31", 31),
    ("jina-v2-fused", "jina-bert-v2.feed_forward_length", "do not fit a feed-forward length of 65", 65),
    ("bert-mean", "tokenizer.ggml.bos_token_id", "the token to put before texts is not in its vocabulary", 1000),
    ("bert-mean", "tokenizer.ggml.seperator_token_id", "the token to put after texts is not in its vocabulary", 1000),
    ("bert-mean", "tokenizer.ggml.unknown_token_id", "its unknown token, 1000, is not in its vocabulary", 1000),
    ("xlm-roberta", "tokenizer.ggml.bos_token_id", "the token to put before texts is not in its vocabulary", 1000),
    ("bert-mean", "blk.0.attn_q.weight", "blk.0.attn_q.weight is of type i32", gguf.GGMLQuantizationType.I32),
    ("bert-reranker", "cls.output.bias", "cls.output.bias is of type f16", gguf.GGMLQuantizationType.F16),
]


def test_values_that_would_end_the_process_are_refused_by_name(tmp_path: Path) -> None:
    paths = []
    for i, (name, key, _, value) in enumerate(FATAL):
        paths.append(ARCHITECTURES[name].write(tmp_path / f"{i}.gguf"))
        reader = gguf.GGUFReader(paths[-1], "r+")
        if field := reader.get_field(key):
            field.parts[field.data[0]][0] = value
        else:
            [tensor] = [tensor for tensor in reader.tensors if tensor.name == key]
            tensor.field.parts[4][0] = value
        reader.data.flush()
    outcomes = attempts(paths)
    for i, (name, key, message, _) in enumerate(FATAL):
        outcome = outcomes[f"{i}.gguf"]
        assert outcome.startswith("ModelLoadError"), (name, key, outcome)
        assert message in outcome


def test_an_output_longer_than_a_vector_is_refused(tiny_path: str, tmp_path: Path) -> None:
    length = {"bert.embedding_length_out": MetadataDetails(gguf.GGUFValueType.UINT32, 64)}
    copy_with_new_metadata(gguf.GGUFReader(tiny_path), gguf.GGUFWriter(tmp_path / "long.gguf", "bert"), length, [])
    assert "its embedding_length_out is 64" in attempts([tmp_path / "long.gguf"])["long.gguf"]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("bert-mean", "▁one".encode(), "▁two".encode(), "has the token '▁two' twice"),
        ("qwen3", b"one", b"two", "two' twice"),
        ("bert-mean", "▁two".encode(), b"\xff" * 6, "its vocabulary is not UTF-8"),
        ("bert-mean", b"\3\0\0\0\1\0\0\0", b"\3\0\0\0\6\0\0\0", "WordPiece, but has tokens for single bytes"),
    ],
)
def test_a_vocabulary_that_cannot_be_one_is_refused(
    name: str, old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    path = ARCHITECTURES[name].write(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    assert message in attempts([path])["model.gguf"]
