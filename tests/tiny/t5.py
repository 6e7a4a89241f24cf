"""Tiny T5 encoders."""

from pathlib import Path

import gguf

from tests.tiny import vocabularies
from tests.tiny.file import TinyFile


def write_t5_encoder(path: Path, *, gated: bool = True) -> Path:
    """Write a T5 encoder: version 1.1 with its gated GELU or, without `gated`, version 1.0 with its ReLU."""
    file = TinyFile(path, "t5encoder", vocabularies.unigram, n_ctx=256, pooling=gguf.PoolingType.MEAN)
    head_dim, n_heads, n_buckets = 8, 4, 32
    file.writer.add_key_length(head_dim)
    file.writer.add_value_length(head_dim)
    file.writer.add_layer_norm_eps(1e-6)
    file.writer.add_layer_norm_rms_eps(1e-6)
    file.writer.add_relative_attn_buckets_count(n_buckets)
    file.embedding("token_embd", file.n_vocab)
    file.norm("enc.output_norm")
    for i in range(file.n_layers):
        layer = f"enc.blk.{i}"
        file.norm(f"{layer}.attn_norm")
        # T5 does not divide by the square root of the head's width, so its queries are that much smaller.
        file.linear(f"{layer}.attn_q", n_heads * head_dim, file.dim, gain=0.5)
        file.linear(f"{layer}.attn_k", n_heads * head_dim, file.dim, gain=1.5)
        file.linear(f"{layer}.attn_v", n_heads * head_dim, file.dim)
        file.linear(f"{layer}.attn_o", file.dim, n_heads * head_dim)
        if i == 0:  # the other layers use the first one's
            file.linear(f"{layer}.attn_rel_b", n_buckets, n_heads, gain=4.0)
        file.norm(f"{layer}.ffn_norm")
        if gated:
            file.linear(f"{layer}.ffn_gate", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_up", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_down", file.dim, file.n_ff)
    return file.save()
