"""Write models of a well-known shape with random weights: for Hugging Face's libraries, and the same weights as GGUF.

    FOLDER/config.json, model.safetensors, tokenizer.json, vocab.txt; FOLDER/model-f32.gguf

They compute at the speed of the real ones, which are large to download. Their vocabulary is the default model's, so
that all models are given the same tokens.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from scripts.download_models import add_word_pieces, convert_bert

Shape = tuple[int, ...]

N_VOCAB = 30_522

CONFIGS: dict[str, dict[str, Any]] = {
    "bert-base": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "type_vocab_size": 2,
        "vocab_size": N_VOCAB,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "vocab_size": N_VOCAB,  # the real one has 151,669 tokens, which takes memory but no time
    },
}


def write(name: str, vocabulary: Path, folder: Path) -> Path:
    """Write the model `name` of `CONFIGS` into `folder`, and return the path of its GGUF.

    Args:
        vocabulary: Folder with BERT's tokenizer.json and vocab.txt.
    """
    config = CONFIGS[name]
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(vocabulary / file, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shapes = dict(bert(config) if config["model_type"] == "bert" else qwen3(config))
    tensors = {tensor: values(tensor, shape) for tensor, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    target = folder / "model-f32.gguf"
    if config["model_type"] == "bert":
        convert_bert(folder, target, "f32", {"title": name, "license": "none"})
    else:
        convert_qwen3(config, tensors, folder / "vocab.txt", target)
    return target


def bert(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Give the name and shape of each tensor, as transformers' BertModel calls it."""
    dim, n_ff = config["hidden_size"], config["intermediate_size"]

    def linear(name: str, n_out: int, n_in: int) -> Iterator[tuple[str, Shape]]:
        yield from ((f"{name}.weight", (n_out, n_in)), (f"{name}.bias", (n_out,)))

    def norm(name: str) -> Iterator[tuple[str, Shape]]:
        yield from ((f"{name}.weight", (dim,)), (f"{name}.bias", (dim,)))

    for kind, n in (("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size")):
        yield f"embeddings.{kind}_embeddings.weight", (config[n], dim)
    yield from norm("embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from linear(f"{layer}.attention.{part}", dim, dim)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", n_ff, dim)
        yield from linear(f"{layer}.output.dense", dim, n_ff)
        yield from norm(f"{layer}.output.LayerNorm")


def qwen3(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Give the name and shape of each tensor, as transformers' Qwen3ForCausalLM calls it."""
    dim, n_ff, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    n_q, n_kv = (head * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", (config["vocab_size"], dim)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for part, n_out, n_in in (("q", n_q, dim), ("k", n_kv, dim), ("v", n_kv, dim), ("o", dim, n_q)):
            yield f"{layer}.self_attn.{part}_proj.weight", (n_out, n_in)
        for part in "qk":
            yield f"{layer}.self_attn.{part}_norm.weight", (head,)
        for part, n_out, n_in in (("gate", n_ff, dim), ("up", n_ff, dim), ("down", dim, n_ff)):
            yield f"{layer}.mlp.{part}_proj.weight", (n_out, n_in)
        for part in ("input", "post_attention"):
            yield f"{layer}.{part}_layernorm.weight", (dim,)
    yield "model.norm.weight", (dim,)


def values(name: str, shape: Shape) -> NDArray[np.float32]:
    """Return random values, the same for the same name: a matrix keeps the size of what it multiplies."""
    random = np.random.default_rng([*name.encode()])
    if "norm" in name.lower() and name.endswith("weight"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    size = 0.1 if name.endswith("bias") else 1.0 if "embed" in name else shape[-1] ** -0.5
    return random.standard_normal(shape, np.float32) * np.float32(size)


def convert_qwen3(
    config: dict[str, Any], tensors: dict[str, NDArray[np.float32]], vocabulary: Path, target: Path
) -> None:
    """Write a Qwen3 model as GGUF, as llama.cpp's own converter would, but for BERT's vocabulary."""
    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_pooling_type(gguf.PoolingType.LAST)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_word_pieces(writer, vocabulary.read_text().splitlines(), n_types=1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for key, tensor in tensors.items():
        name = names.get_name(key, (".weight",))
        assert name, key
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
