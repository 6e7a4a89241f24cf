"""What a model must answer: its forward pass in plain NumPy, slow and in double precision.

GGUF file ── model.py: Model ──► post_norm.py, pre_norm.py or t5.py, by architecture ──► token vectors
                                                                                    └──► heads.py ──► scores

Written from the papers and from how Hugging Face's transformers runs these models, with the tensors as GGUF names
them; `parts.py` has what they are made of. One text at a time, so nothing can leak between texts.
"""

from collections.abc import Callable
from pathlib import Path

from tests.forward import heads, post_norm, pre_norm, t5
from tests.forward.model import Model
from tests.forward.parts import Array, Tokens

_TOKEN_VECTORS: dict[str, Callable[[Model, Tokens], Array]] = {
    "bert": post_norm.bert,
    "jina-bert-v2": post_norm.jina_v2,
    "jina-bert-v3": post_norm.jina_v3,
    "nomic-bert": post_norm.nomic,
    "nomic-bert-moe": post_norm.nomic_moe,
    "modern-bert": pre_norm.modern_bert,
    "neo-bert": pre_norm.neo_bert,
    "eurobert": pre_norm.eurobert,
    "gemma-embedding": pre_norm.gemma,
    "llama-embed": pre_norm.llama_embed,
    "llama": pre_norm.llama,
    "qwen2": pre_norm.qwen,
    "qwen3": pre_norm.qwen,
    "t5encoder": t5.encoder,
}


def forward(path: Path | Model, tokens: Tokens) -> Array:
    """Compute the token vectors of one text, ``(n_tokens, dim) float64``, after all that follows the last layer.

    That includes the projections of an EmbeddingGemma, which its authors apply to the mean: they are linear, so the
    mean of what they give is what they give for the mean.
    """
    model = path if isinstance(path, Model) else Model(path)
    return heads.project(model, _TOKEN_VECTORS[model.architecture](model, tokens))


def pooled(path: Path, tokens: Tokens) -> Array:
    """Compute the embedding of one text as its file's pooling type says, ``(dim,) float64``, not normalised."""
    return heads.pool(Model(path), forward(path, tokens))


def score(path: Path, tokens: Tokens) -> Array:
    """Compute what a reranker's head gives for one text, ``(n_scores,) float64``."""
    return heads.score(Model(path), forward(path, tokens))
