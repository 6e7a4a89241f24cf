"""Tiny models that put a norm before each half of a layer: ModernBERT, Gemma, Qwen, Llama and their kin."""

import functools
from pathlib import Path

import gguf

from tests.tiny import vocabularies
from tests.tiny.file import TinyFile
from tests.tiny.vocabularies import AddVocabulary


def write_modern_bert(
    path: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.MEAN, activation: str = "gelu"
) -> Path:
    """Write a ModernBERT with 4 layers: the first and the last global, those between see 8 tokens to either side."""
    file = _start_modern_bert(path, pooling, activation)
    return file.save()


def write_modern_bert_reranker(path: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> Path:
    """Write a ModernBERT cross-encoder; `pooling` says what its head reads."""
    file = _start_modern_bert(path, gguf.PoolingType.RANK, "gelu")
    file.writer.add_uint32("modern-bert.classifier.pooling_type", pooling)
    file.writer.add_classifier_output_labels(["relevance"])
    file.linear("cls", file.dim, file.dim)
    file.norm("cls.norm")
    file.linear("cls.output", 1, file.dim, bias=True)
    return file.save()


def _start_modern_bert(path: Path, pooling: gguf.PoolingType, activation: str) -> TinyFile:
    file = TinyFile(path, "modern-bert", vocabularies.modern_bert, n_ff=32, n_layers=4, pooling=pooling)
    file.writer.add_vocab_size(file.n_vocab)
    file.writer.add_layer_norm_eps(1e-5)
    file.writer.add_causal_attention(False)
    file.writer.add_sliding_window(16)
    file.writer.add_sliding_window_pattern(3)
    file.writer.add_rope_freq_base(160000.0)
    file.writer.add_rope_freq_base_swa(100.0)
    file.writer.add_string("modern-bert.hidden_activation", activation)
    file.embedding("token_embd", file.n_vocab)
    file.norm("token_embd_norm")
    file.norm("output_norm")
    for i in range(file.n_layers):
        layer = f"blk.{i}"
        if i > 0:
            file.norm(f"{layer}.attn_norm")
        file.linear(f"{layer}.attn_qkv", 3 * file.dim, file.dim, gain=1.5)
        file.linear(f"{layer}.attn_output", file.dim, file.dim)
        file.norm(f"{layer}.ffn_norm")
        file.linear(f"{layer}.ffn_up", 2 * file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_down", file.dim, file.n_ff)
    return file


def write_neo_bert(path: Path) -> Path:
    """Write a NeoBERT."""
    file = TinyFile(path, "neo-bert", vocabularies.word_piece, pooling=gguf.PoolingType.CLS)
    file.writer.add_layer_norm_rms_eps(1e-5)
    file.writer.add_causal_attention(False)
    file.writer.add_rope_freq_base(10000.0)
    file.writer.add_token_type_count(2)
    file.embedding("token_embd", file.n_vocab)
    file.norm("enc.output_norm")
    for i in range(file.n_layers):
        layer = f"blk.{i}"
        file.norm(f"{layer}.attn_norm")
        file.linear(f"{layer}.attn_qkv", 3 * file.dim, file.dim, gain=1.5)
        file.linear(f"{layer}.attn_output", file.dim, file.dim)
        file.norm(f"{layer}.ffn_norm")
        file.linear(f"{layer}.ffn_up", 2 * file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_down", file.dim, file.n_ff)
    return file.save()


def write_gemma(path: Path, *, dense: bool = False) -> Path:
    """Write an EmbeddingGemma with 3 layers, the last one global; with `dense`, its two projections as well."""
    file = TinyFile(path, "gemma-embedding", vocabularies.gemma, n_layers=3, n_ff=48, pooling=gguf.PoolingType.MEAN)
    file.writer.add_sliding_window(16)
    file.writer.add_sliding_window_pattern(3)
    file.writer.add_rope_freq_base_swa(100.0)
    _add_llama(file, head_dim=16, n_kv_heads=1, rope_base=1000000.0, head_norms=True)
    for i in range(file.n_layers):
        file.norm(f"blk.{i}.post_attention_norm")
        file.norm(f"blk.{i}.post_ffw_norm")
    if dense:
        file.writer.add_dense_features_dims("dense_2", file.dim, 96)
        file.writer.add_dense_features_dims("dense_3", 96, file.dim)
        file.linear("dense_2", 96, file.dim)
        file.linear("dense_3", file.dim, 96)
    return file.save()


def write_eurobert(path: Path) -> Path:
    """Write a EuroBERT, which jina-embeddings-v5-text-nano is too."""
    file = _start(path, "eurobert", vocabularies.eurobert, gguf.PoolingType.MEAN)
    file.writer.add_causal_attention(False)
    _add_llama(file, head_dim=8, n_kv_heads=2, rope_base=250000.0)
    return file.save()


def write_llama_embed(path: Path) -> Path:
    """Write a llama-embed-nemotron: a bidirectional Llama."""
    file = _start(path, "llama-embed", vocabularies.llama, gguf.PoolingType.MEAN)
    file.writer.add_causal_attention(False)
    file.writer.add_rope_dimension_count(8)
    _add_llama(file, head_dim=8, n_kv_heads=2, rope_base=500000.0)
    return file.save()


def write_mistral(path: Path) -> Path:
    """Write an E5-Mistral: the last token's vector of a Llama."""
    file = _start(path, "llama", vocabularies.mistral, gguf.PoolingType.LAST)
    file.writer.add_rope_dimension_count(8)
    _add_llama(file, head_dim=8, n_kv_heads=2, rope_base=10000.0)
    return file.save()


def write_qwen2(
    path: Path, *, causal: bool = True, pooling: gguf.PoolingType = gguf.PoolingType.LAST, pre: str = "qwen2"
) -> Path:
    """Write a Qwen2, as jina-code-embeddings is; without `causal` it is bidirectional; `pre` cuts texts into words."""
    file = _start(path, "qwen2", functools.partial(vocabularies.qwen, pre=pre), pooling)
    file.writer.add_causal_attention(causal)
    _add_llama(file, head_dim=8, n_kv_heads=2, rope_base=1000000.0, biases=True)
    return file.save()


def write_qwen3(path: Path) -> Path:
    """Write a Qwen3-Embedding; its heads are wider than the model's dimensions divided by them."""
    file = _start(path, "qwen3", vocabularies.qwen, gguf.PoolingType.LAST)
    _add_llama(file, head_dim=16, n_kv_heads=2, rope_base=1000000.0, head_norms=True)
    return file.save()


def write_qwen3_reranker(path: Path, *, template: str | None = None, pre: str = "qwen2") -> Path:
    """Write a Qwen3-Reranker: how likely the next token is "yes", and how likely "no".

    `template` says how query and document become one text, as llama.cpp's converter writes it; `pre` cuts texts into
    words.
    """
    file = _start(path, "qwen3", functools.partial(vocabularies.qwen, pre=pre), gguf.PoolingType.RANK)
    if template is not None:
        file.writer.add_chat_template([{"name": "rerank", "template": template}])
    _add_llama(file, head_dim=16, n_kv_heads=2, rope_base=1000000.0, head_norms=True)
    file.writer.add_classifier_output_labels(["yes", "no"])
    file.linear("cls.output", 2, file.dim)
    return file.save()


def _start(path: Path, architecture: str, vocabulary: AddVocabulary, pooling: gguf.PoolingType) -> TinyFile:
    return TinyFile(path, architecture, vocabulary, n_ff=48, pooling=pooling)


def _add_llama(
    file: TinyFile, *, head_dim: int, n_kv_heads: int, rope_base: float, biases: bool = False, head_norms: bool = False
) -> None:
    """Add Llama's tensors: a norm, grouped queries, a norm, SwiGLU or its like."""
    n_heads = 4
    file.writer.add_layer_norm_rms_eps(1e-6)
    file.writer.add_head_count_kv(n_kv_heads)
    file.writer.add_key_length(head_dim)
    file.writer.add_value_length(head_dim)
    file.writer.add_rope_freq_base(rope_base)
    file.embedding("token_embd", file.n_vocab)
    file.norm("output_norm")
    for i in range(file.n_layers):
        layer = f"blk.{i}"
        file.norm(f"{layer}.attn_norm")
        file.linear(f"{layer}.attn_q", n_heads * head_dim, file.dim, gain=1.5, bias=biases)
        file.linear(f"{layer}.attn_k", n_kv_heads * head_dim, file.dim, gain=1.5, bias=biases)
        file.linear(f"{layer}.attn_v", n_kv_heads * head_dim, file.dim, bias=biases)
        file.linear(f"{layer}.attn_output", file.dim, n_heads * head_dim)
        if head_norms:
            file.norm(f"{layer}.attn_q_norm", head_dim)
            file.norm(f"{layer}.attn_k_norm", head_dim)
        file.norm(f"{layer}.ffn_norm")
        file.linear(f"{layer}.ffn_gate", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_up", file.n_ff, file.dim)
        file.linear(f"{layer}.ffn_down", file.dim, file.n_ff)
