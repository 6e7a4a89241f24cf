"""Write tiny models with random weights, for tests that need a model but no meaning."""

from pathlib import Path

import gguf
import numpy as np

WORDS = ["red", "green", "blue", "one", "two", "three", "poison", *"abcdefghijklmnopqrstuvwxyz"]
POISON = "poison"


def write_bert(path: Path, *, zero: bool = False, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN) -> Path:
    """Write a BERT with 2 layers, 32 dimensions, 64 positions.

    The embedding of "poison" is not a number. With `zero`, every vector comes out as all zeros.
    """
    dim, n_ff, n_layers, n_ctx = 32, 64, 2, 64
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"▁{word}" for word in WORDS)]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(n_ff)
    writer.add_block_count(n_layers)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(pieces)
    writer.add_token_types([3] * 5 + [1] * len(WORDS))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)

    def add(name: str, *shape: int) -> None:
        tensor = random.normal(0, 0.1, shape).astype(np.float32)
        if "norm" in name:
            tensor = np.full(shape, 0 if zero or name.endswith("bias") else 1, np.float32)
        if name == "token_embd.weight":
            tensor[pieces.index(f"▁{POISON}")] = np.nan
        writer.add_tensor(name, tensor)

    add("token_embd.weight", len(pieces), dim)
    add("position_embd.weight", n_ctx, dim)
    add("token_types.weight", 2, dim)
    shapes = {"attn_q": (dim, dim), "attn_k": (dim, dim), "attn_v": (dim, dim), "attn_output": (dim, dim)}
    shapes |= {"ffn_up": (n_ff, dim), "ffn_down": (dim, n_ff)}
    for layer in range(n_layers):
        for name, shape in shapes.items():
            add(f"blk.{layer}.{name}.weight", *shape)
            add(f"blk.{layer}.{name}.bias", shape[0])
        for name in ("attn_output_norm", "layer_output_norm"):
            add(f"blk.{layer}.{name}.weight", dim)
            add(f"blk.{layer}.{name}.bias", dim)
    add("token_embd_norm.weight", dim)
    add("token_embd_norm.bias", dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
