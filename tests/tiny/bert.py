"""Tiny BERTs and what has grown from BERT: models that put a norm after each half of a layer."""

import functools
from collections.abc import Sequence
from pathlib import Path

import gguf

from tests.tiny import vocabularies
from tests.tiny.file import TinyFile


def write_bert(
    path: Path,
    *,
    zero: bool = False,
    pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
    gain: float = 0.3,
    more_words: Sequence[str] = (),
) -> Path:
    """Write a BERT with 2 layers, 32 dimensions, 64 positions.

    The embedding of "poison" is not a number. With `zero`, every vector comes out as all zeros. With a `gain` of 0.3 a
    text's neighbours change its vector by less than 0.0001, with 1 by up to 0.002: llama.cpp rounds otherwise in a
    batch.
    """
    vocabulary = functools.partial(vocabularies.word_piece, more=more_words)
    file = TinyFile(path, "bert", vocabulary, gain=gain, pooling=pooling)
    _add_bert(file, n_types=2, zero=zero)
    return file.save()


def write_roberta(path: Path) -> Path:
    """Write a RoBERTa: BERT with byte-level BPE and one token type."""
    file = TinyFile(path, "bert", vocabularies.roberta, pooling=gguf.PoolingType.MEAN)
    _add_bert(file, n_types=1)
    return file.save()


def write_xlm_roberta(path: Path) -> Path:
    """Write an XLM-RoBERTa, as multilingual E5 and BGE-M3 are."""
    file = TinyFile(path, "bert", vocabularies.xlm_roberta, pooling=gguf.PoolingType.CLS)
    _add_bert(file, n_types=1)
    return file.save()


def write_bert_reranker(path: Path) -> Path:
    """Write a BERT cross-encoder: BERT's pooler, then one score."""
    file = TinyFile(path, "bert", vocabularies.word_piece, pooling=gguf.PoolingType.RANK)
    _add_bert(file, n_types=2)
    _add_head(file)
    return file.save()


def write_xlm_roberta_reranker(path: Path) -> Path:
    """Write an XLM-RoBERTa cross-encoder, as BGE-reranker-v2-m3 is."""
    file = TinyFile(path, "bert", vocabularies.xlm_roberta, pooling=gguf.PoolingType.RANK)
    _add_bert(file, n_types=1)
    _add_head(file)
    return file.save()


def write_jina_v2(path: Path, *, fused_gate: bool = False) -> Path:
    """Write a jina-embeddings-v2; with `fused_gate`, the first half of `ffn_up` is the gate, as in newer files."""
    file = TinyFile(path, "jina-bert-v2", vocabularies.word_piece, n_heads=8, pooling=gguf.PoolingType.MEAN)
    _add_jina_v2(file, fused_gate=fused_gate)
    return file.save()


def write_jina_v2_code(path: Path) -> Path:
    """Write a jina-embeddings-v2-base-code.

    Its 6 heads are no power of two, which ALiBi treats apart. Its gate is a tensor of its own: its authors put the gate
    into the second half of their tensor, where llama.cpp would not look for it.
    """
    file = TinyFile(
        path, "jina-bert-v2", vocabularies.jina_code, dim=48, n_ff=48, n_heads=6, pooling=gguf.PoolingType.MEAN
    )
    _add_jina_v2(file, fused_gate=False, code=True)
    return file.save()


def write_jina_v2_reranker(path: Path) -> Path:
    """Write a cross-encoder on jina-bert-v2; llama.cpp knows it with one projection."""
    file = TinyFile(path, "jina-bert-v2", vocabularies.word_piece, n_heads=8, pooling=gguf.PoolingType.RANK)
    _add_jina_v2(file, fused_gate=False)
    file.linear("cls", 1, file.dim, gain=0.5, bias=True)
    return file.save()


def write_jina_v3(path: Path) -> Path:
    """Write a jina-embeddings-v3 without its adapters: XLM-RoBERTa with RoPE."""
    file = TinyFile(path, "jina-bert-v3", vocabularies.xlm_roberta, pooling=gguf.PoolingType.MEAN)
    file.writer.add_rope_freq_base(20000.0)
    _add_embeddings(file, n_types=1)
    for layer in _layers(file):
        file.linear(f"{layer}.attn_qkv", 3 * file.dim, file.dim, gain=2.0, bias=True)
        _add_output(file, layer, bias=True)
        _add_plain_ffn(file, layer)
    return file.save()


def write_nomic(path: Path) -> Path:
    """Write a nomic-embed-text-v1.5."""
    file = TinyFile(path, "nomic-bert", vocabularies.word_piece, pooling=gguf.PoolingType.MEAN)
    file.writer.add_rope_freq_base(1000.0)
    _add_embeddings(file, n_types=2)
    for layer in _layers(file):
        file.linear(f"{layer}.attn_qkv", 3 * file.dim, file.dim, gain=2.0)
        _add_output(file, layer, bias=False)
        file.linear(f"{layer}.ffn_gate", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_up", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_down", file.dim, file.n_ff)
    return file.save()


def write_nomic_moe(path: Path) -> Path:
    """Write a nomic-embed-text-v2-moe: every second layer sends a token to two of four experts."""
    file = TinyFile(path, "nomic-bert-moe", vocabularies.xlm_roberta, n_ff=48, pooling=gguf.PoolingType.MEAN)
    file.writer.add_rope_freq_base(10000.0)
    file.writer.add_moe_every_n_layers(2)
    file.writer.add_expert_count(4)
    file.writer.add_expert_used_count(2)
    _add_embeddings(file, n_types=1)
    for i, layer in enumerate(_layers(file)):
        file.linear(f"{layer}.attn_qkv", 3 * file.dim, file.dim, gain=1.5, bias=True)
        _add_output(file, layer, bias=True)
        if i % 2 == 1:
            # Wide apart, so that rounding never sends a token to another expert.
            file.linear(f"{layer}.ffn_gate_inp", 4, file.dim, gain=4.0)
            file.experts(f"{layer}.ffn_up_exps", 4, file.n_ff, file.dim)
            file.experts(f"{layer}.ffn_down_exps", 4, file.dim, file.n_ff)
        else:
            _add_plain_ffn(file, layer)
    return file.save()


def _add_bert(file: TinyFile, *, n_types: int, zero: bool = False) -> None:
    _add_embeddings(file, n_types=n_types, zero=zero)
    file.embedding("position_embd", 64, gain=0.7)
    for layer in _layers(file):
        _add_attention(file, layer)
        _add_output(file, layer, bias=True, zero=zero)
        _add_plain_ffn(file, layer)


def _add_jina_v2(file: TinyFile, *, fused_gate: bool, code: bool = False) -> None:
    _add_embeddings(file, n_types=2)
    for layer in _layers(file):
        _add_attention(file, layer)
        _add_output(file, layer, bias=True)
        if code:
            file.norm(f"{layer}.attn_q_norm", bias=True)
            file.norm(f"{layer}.attn_k_norm", bias=True)
            file.norm(f"{layer}.attn_norm_2", bias=True)
        if fused_gate:
            file.linear(f"{layer}.ffn_up", 2 * file.n_ff, file.dim)
        else:
            file.linear(f"{layer}.ffn_gate", file.n_ff, file.dim)
            file.linear(f"{layer}.ffn_up", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_down", file.dim, file.n_ff, bias=True)


def _layers(file: TinyFile) -> list[str]:
    return [f"blk.{i}" for i in range(file.n_layers)]


def _add_embeddings(file: TinyFile, *, n_types: int, zero: bool = False) -> None:
    file.writer.add_layer_norm_eps(1e-12)
    file.writer.add_causal_attention(False)
    file.writer.add_token_type_count(n_types)
    file.embedding("token_embd", file.n_vocab)
    file.embedding("token_types", n_types, gain=0.5)
    file.norm("token_embd_norm", bias=True, zero=zero)


def _add_attention(file: TinyFile, layer: str) -> None:
    # Queries and keys of 2 give attention that looks at few tokens, so that positions and masks matter.
    file.linear(f"{layer}.attn_q", file.dim, file.dim, gain=2.0, bias=True)
    file.linear(f"{layer}.attn_k", file.dim, file.dim, gain=2.0, bias=True)
    file.linear(f"{layer}.attn_v", file.dim, file.dim, bias=True)


def _add_output(file: TinyFile, layer: str, *, bias: bool, zero: bool = False) -> None:
    file.linear(f"{layer}.attn_output", file.dim, file.dim, gain=2.0, bias=bias)
    file.norm(f"{layer}.attn_output_norm", bias=True, zero=zero)
    file.norm(f"{layer}.layer_output_norm", bias=True, zero=zero)


def _add_plain_ffn(file: TinyFile, layer: str) -> None:
    file.linear(f"{layer}.ffn_up", file.n_ff, file.dim, bias=True)
    file.linear(f"{layer}.ffn_down", file.dim, file.n_ff, bias=True)


def _add_head(file: TinyFile) -> None:
    file.writer.add_classifier_output_labels(["relevance"])
    file.linear("cls", file.dim, file.dim, bias=True)
    file.linear("cls.output", 1, file.dim, bias=True)
