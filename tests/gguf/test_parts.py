"""Models in several files."""

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from embellama import EmbeddingEngine, EngineConfig, ModelError, ModelLoadError
from embellama.gguf.header import Header


def split(path: str, folder: Path, n_parts: int, first_has_tensors: bool) -> list[Path]:
    """Write a file as several, as llama.cpp's gguf-split does."""
    reader = gguf.GGUFReader(path)
    tensors = list(reader.tensors)
    n_filled = n_parts if first_has_tensors else n_parts - 1
    groups: list[list[gguf.ReaderTensor]] = [tensors[i::n_filled] for i in range(n_filled)]
    if not first_has_tensors:
        groups.insert(0, [])
    paths = [folder / f"model-{i:05}-of-{n_parts:05}.gguf" for i in range(1, n_parts + 1)]
    for number, (target, group) in enumerate(zip(paths, groups, strict=True)):
        writer = gguf.GGUFWriter(target, arch="bert")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind, *inner = field.types
                writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", n_parts)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in group:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("first_has_tensors", [False, True])
def test_a_model_in_several_files_is_the_model(tiny_path: str, tmp_path: Path, first_has_tensors: bool) -> None:
    first, *_ = split(tiny_path, tmp_path, 3, first_has_tensors)
    whole, parts = Header(tiny_path), Header(str(first))
    assert (parts.tensors, parts.n_values, parts.n_bytes) == (whole.tensors, whole.n_values, whole.n_bytes)
    rows = []
    for path in (tiny_path, str(first)):
        config = EngineConfig(model_path=path, model_name="tiny", num_workers=1)
        with EmbeddingEngine(config, max_model_bytes=whole.n_bytes) as engine:
            assert engine.model_info("tiny").n_bytes == whole.n_bytes
            rows.append(engine.embed("tiny", "red green"))
    np.testing.assert_array_equal(rows[0], rows[1])


def test_a_later_part_names_the_first(tiny_path: str, tmp_path: Path) -> None:
    first, second, _ = split(tiny_path, tmp_path, 3, False)
    with pytest.raises(ModelLoadError, match="it is part 2 of 3; give part 1, ") as error:
        EmbeddingEngine(EngineConfig(model_path=str(second)))
    assert str(first) in str(error.value)


def test_a_missing_part_is_named(tiny_path: str, tmp_path: Path) -> None:
    first, _, third = split(tiny_path, tmp_path, 3, False)
    third.unlink()
    with pytest.raises(ModelLoadError, match=r"part 3 of 3 is missing: .*model-00003-of-00003\.gguf"):
        EmbeddingEngine(EngineConfig(model_path=str(first)))


def test_a_first_part_under_another_name_is_told_its_own(tiny_path: str, tmp_path: Path) -> None:
    first, *_ = split(tiny_path, tmp_path, 2, False)
    other = Path(shutil.copy(first, tmp_path / "model.gguf"))
    with pytest.raises(ModelLoadError, match=r"whose name must end in -00001-of-00002\.gguf"):
        EmbeddingEngine(EngineConfig(model_path=str(other)))


def test_a_later_part_that_changed_is_noticed(tiny_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _, third = split(tiny_path, tmp_path, 3, False)
    with EmbeddingEngine(EngineConfig(model_path=str(first), model_name="tiny", num_workers=1)) as engine:
        engine.embed("tiny", "red")
        assert not engine.model_info("tiny").changed
        os.utime(third, (1, 1))
        assert engine.model_info("tiny").changed
        engine.embed("tiny", "red")
        assert f"{third} has changed since model 'tiny' was loaded from it" in caplog.text
        os.truncate(third, 1000)
        with pytest.raises(ModelError, match=r"00003-of-00003\.gguf was cut while model 'tiny' was loaded"):
            engine.embed("tiny", "red")
