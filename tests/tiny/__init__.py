"""Tiny models with random weights: one for each architecture of embedding model and reranker that llama.cpp runs.

write_<architecture>(path) ── vocabularies.py: its kind of vocabulary ──┐
                           └─ seeded random tensors ─► file.py: TinyFile ┴─► a GGUF file below 300 kB

They mean nothing, but they compute what a real model of the architecture does: `tests/forward` says what must come
out. In each, the embedding of the token for `POISON` is not a number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf

from tests.tiny.bert import (
    write_bert,
    write_bert_reranker,
    write_jina_v2,
    write_jina_v2_code,
    write_jina_v2_reranker,
    write_jina_v3,
    write_nomic,
    write_nomic_moe,
    write_roberta,
    write_xlm_roberta,
    write_xlm_roberta_reranker,
)
from tests.tiny.pre_norm import (
    write_eurobert,
    write_gemma,
    write_llama_embed,
    write_mistral,
    write_modern_bert,
    write_modern_bert_reranker,
    write_neo_bert,
    write_qwen2,
    write_qwen3,
    write_qwen3_reranker,
)
from tests.tiny.t5 import write_t5_encoder
from tests.tiny.vocabularies import POISON, WORDS

__all__ = ["ARCHITECTURES", "POISON", "WORDS", "Architecture", "write_bert", "write_qwen2", "write_qwen3_reranker"]

_MEAN, _CLS, _LAST, _RANK = (
    gguf.PoolingType.MEAN,
    gguf.PoolingType.CLS,
    gguf.PoolingType.LAST,
    gguf.PoolingType.RANK,
)


@dataclass(frozen=True)
class Architecture:
    """One kind of tiny model.

    Attributes:
        write: Writes the file and returns its path.
        pooling: The pooling type the file states.
        notes: What sets it apart.
        n_ctx: Its context length in tokens.
        causal: Whether the model is causal: a token sees only those before it.
        window: Tokens its local layers see to either side; 0 if it has none.
    """

    write: Callable[[Path], Path]
    pooling: gguf.PoolingType
    notes: str
    n_ctx: int = 64
    causal: bool = False
    window: int = 0

    @property
    def reranker(self) -> bool:
        return self.pooling == _RANK


ARCHITECTURES: dict[str, Architecture] = {
    "bert-mean": Architecture(lambda path: write_bert(path, gain=1), _MEAN, "WordPiece, learned positions"),
    "bert-cls": Architecture(lambda path: write_bert(path, gain=1, pooling=_CLS), _CLS, "the same"),
    "roberta": Architecture(write_roberta, _MEAN, "BERT with byte-level BPE"),
    "xlm-roberta": Architecture(write_xlm_roberta, _CLS, "BERT with a unigram vocabulary and one token type"),
    "jina-v2": Architecture(write_jina_v2, _MEAN, "ALiBi, GEGLU with a gate of its own"),
    "jina-v2-fused": Architecture(
        lambda path: write_jina_v2(path, fused_gate=True), _MEAN, "ALiBi, GEGLU with the gate inside ffn_up"
    ),
    "jina-v2-code": Architecture(
        write_jina_v2_code, _MEAN, "ALiBi for 6 heads, norms of queries and keys, a second norm, byte-level BPE"
    ),
    "jina-v3": Architecture(write_jina_v3, _MEAN, "RoPE, queries, keys and values in one tensor, unigram vocabulary"),
    "nomic-bert": Architecture(write_nomic, _MEAN, "RoPE, SwiGLU, no biases"),
    "nomic-bert-moe": Architecture(write_nomic_moe, _MEAN, "RoPE, two of four experts in every second layer"),
    "modern-bert": Architecture(
        write_modern_bert, _MEAN, "local and global layers, each with its RoPE; GEGLU, byte-level BPE", window=8
    ),
    "modern-bert-silu": Architecture(
        lambda path: write_modern_bert(path, activation="silu", pooling=_CLS), _CLS, "SwiGLU instead", window=8
    ),
    "neo-bert": Architecture(write_neo_bert, _CLS, "RoPE on neighbouring values, SwiGLU, WordPiece"),
    "eurobert": Architecture(write_eurobert, _MEAN, "grouped queries, bidirectional"),
    "gemma-embedding": Architecture(
        write_gemma, _MEAN, "local and global layers, norms of queries and keys, one key head, SentencePiece", window=8
    ),
    "gemma-embedding-dense": Architecture(
        lambda path: write_gemma(path, dense=True), _MEAN, "two projections after the pooling", window=8
    ),
    "t5encoder": Architecture(write_t5_encoder, _MEAN, "relative positions, gated GELU, unigram", n_ctx=256),
    "t5encoder-relu": Architecture(
        lambda path: write_t5_encoder(path, gated=False), _MEAN, "relative positions, ReLU", n_ctx=256
    ),
    "llama-embed": Architecture(write_llama_embed, _MEAN, "bidirectional, RoPE on neighbouring values"),
    "qwen3": Architecture(write_qwen3, _LAST, "grouped queries, norms of queries and keys", causal=True),
    "qwen2": Architecture(write_qwen2, _LAST, "biases of queries, keys and values", causal=True),
    "qwen2-bidirectional": Architecture(
        lambda path: write_qwen2(path, causal=False, pooling=_MEAN), _MEAN, "a bidirectional decoder"
    ),
    "mistral": Architecture(write_mistral, _LAST, "llama's, with SentencePiece", causal=True),
    "bert-reranker": Architecture(write_bert_reranker, _RANK, "pooler with tanh, one score"),
    "xlm-roberta-reranker": Architecture(write_xlm_roberta_reranker, _RANK, "dense with tanh, one score"),
    "jina-v2-reranker": Architecture(write_jina_v2_reranker, _RANK, "one projection with tanh"),
    "modern-bert-reranker": Architecture(
        write_modern_bert_reranker, _RANK, "mean, dense with GELU and norm, one score", window=8
    ),
    "modern-bert-reranker-cls": Architecture(
        lambda path: write_modern_bert_reranker(path, pooling=_CLS), _RANK, "the same on the first token", window=8
    ),
    "qwen3-reranker": Architecture(write_qwen3_reranker, _RANK, "yes and no, shares of one", causal=True),
}
