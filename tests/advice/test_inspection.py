"""What `embellama inspect` says of a file, and `embellama devices` of the machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from click.testing import CliRunner
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from embellama import ConfigError, EmbeddingEngine, EngineConfig, ModelLoadError
from embellama.advice.inspection import Inspection, inspect
from embellama.cli.main import main
from embellama.machine.devices import devices, gpu_build
from tests.tiny import ARCHITECTURES

MakeModel = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> MakeModel:
    """Write a tiny model of an architecture, without the metadata in `without` and with that in `added`."""

    def make(name: str, *, without: tuple[str, ...] = (), added: dict[str, Any] | None = None) -> Path:
        whole = ARCHITECTURES[name].write(tmp_path / "whole.gguf")
        reader = gguf.GGUFReader(whole)
        new = {}
        for key, value in (added or {}).items():
            kind = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
            new[key] = MetadataDetails(kind[type(value)], value)
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
        copy_with_new_metadata(reader, writer, new, list(without))
        return path

    return make


def inspected(path: Path, **settings: Any) -> Inspection:
    return inspect(EngineConfig(model_path=str(path), **settings))


# What each tiny model as a whole is warned of; most of nothing.
EXPECTED = {
    "jina-v2-fused": ["its gates are stored with ffn_up"],
    "jina-v2-reranker": ["it is a reranker"],
    "bert-reranker": ["it is a reranker", "it has 2 token types"],
    "xlm-roberta-reranker": ["it is a reranker"],
    "modern-bert-reranker": ["it is a reranker"],
    "modern-bert-reranker-cls": ["it is a reranker"],
    "qwen3-reranker": ["it is a reranker", "it has no tokenizer.chat_template.rerank"],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_good_file_is_warned_of_nothing_that_is_not_there(name: str, make: MakeModel) -> None:
    found = inspected(make(name))
    expected = EXPECTED.get(name, [])
    assert len(found.warnings) == len(expected), found.warnings
    for warning, start in zip(found.warnings, expected, strict=True):
        assert warning.startswith(start)


@pytest.mark.parametrize(
    ("name", "without", "added", "warning"),
    [
        ("bert-mean", ("bert.pooling_type",), {}, "it cannot be loaded as it is: it names no pooling type"),
        (
            "qwen3",
            ("qwen3.pooling_type",),
            {"tokenizer.chat_template": "{{ messages }}"},
            "it has a chat template and no pooling type: it was made to chat",
        ),
        ("qwen3", ("tokenizer.ggml.add_eos_token",), {}, "no end token is added to texts, but its pooling is last"),
        ("qwen3", (), {"tokenizer.ggml.eos_token_id": 2}, "<|im_end|> is added to texts"),
        ("xlm-roberta", (), {"tokenizer.ggml.add_bos_token": False}, "no start token is added to texts"),
        ("modern-bert", (), {"tokenizer.ggml.add_eos_token": False}, "no token is added after texts"),
        ("gemma-embedding", (), {"tokenizer.ggml.add_eos_token": False}, "EmbeddingGemma was trained with <bos>"),
        ("roberta", (), {"tokenizer.ggml.pre": "default"}, "its pre-tokenizer is not named"),
        (
            "nomic-bert",
            (),
            {"nomic-bert.rope.scaling.original_context_length": 32},
            "its context of 64 tokens is stretched: it was trained on 32",
        ),
        ("bert-reranker", (), {"bert.pooling_type": 2}, "it has a classification head, but its pooling is cls"),
    ],
)
def test_what_is_usually_wrong_is_warned_of(
    name: str, without: tuple[str, ...], added: dict[str, Any], warning: str, make: MakeModel
) -> None:
    found = inspected(make(name, without=without, added=added))
    assert any(told.startswith(warning) for told in found.warnings), found.warnings


def test_a_context_beyond_the_trained_one_is_warned_of_and_not_used(make: MakeModel) -> None:
    found = inspected(make("bert-mean"), n_ctx=100)
    assert found.info.n_ctx == 64
    assert found.warnings == ["n_ctx is 100, but it was trained on 64 tokens, which is the limit"]


def test_facts_are_those_the_engine_goes_by(make: MakeModel) -> None:
    path = make("xlm-roberta")
    found = inspected(path)
    assert (found.tokenizer, found.before, found.after) == ("t5", ["<s>"], ["</s>"])
    assert (found.info.architecture, found.info.pooling, found.info.quantization) == ("bert", "cls", "f32")
    with EmbeddingEngine(EngineConfig(model_path=str(path))) as engine:
        info = engine.model_info()
        assert info.loaded
        assert {field: getattr(info, field) for field in info.__struct_fields__ if field != "loaded"} == {
            field: getattr(found.info, field) for field in info.__struct_fields__ if field != "loaded"
        }
        assert len(engine.embed(None, "red")) == info.dim


def test_the_command_prints_facts_and_warnings(make: MakeModel) -> None:
    path = make("bert-mean", without=("bert.pooling_type",))
    told = CliRunner().invoke(main, ["inspect", str(path)])
    assert told.exit_code == 0
    assert "before         [CLS]\n" in told.output
    assert "warning: it cannot be loaded as it is: it names no pooling type" in told.output
    as_json = json.loads(CliRunner().invoke(main, ["inspect", "--json", str(path)]).output)
    assert as_json["info"]["dim"] == 32
    assert len(as_json["warnings"]) == 1


def test_a_file_that_is_no_model_is_one_line() -> None:
    told = CliRunner().invoke(main, ["inspect", __file__])
    assert told.exit_code == 1
    assert told.output.startswith(f"Error: cannot load {__file__}: not a GGUF file")
    with pytest.raises(ModelLoadError):
        inspected(Path(__file__))


def test_the_cpu_is_a_device() -> None:
    [cpu] = [device for device in devices() if device.kind == "cpu"]
    assert cpu.total_bytes > 1e8
    told = CliRunner().invoke(main, ["devices"])
    assert told.output.startswith(f"{cpu.name}  cpu  {cpu.description}")
    assert ("This build uses no GPU" in told.output) == (not gpu_build())
    assert len(json.loads(CliRunner().invoke(main, ["devices", "--json"]).output)) == len(devices())


def test_layers_for_a_gpu_that_the_build_does_not_know_are_refused(
    make: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embellama.gguf.weights.gpu_build", lambda: False)
    with pytest.raises(ConfigError, match=r"n_gpu_layers is 1, but this llama.cpp knows no GPU; .*-DGGML_CUDA=on"):
        EmbeddingEngine(EngineConfig(model_path=str(make("bert-mean")), n_gpu_layers=1))
