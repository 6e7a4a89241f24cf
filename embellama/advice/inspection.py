"""Report what the engine would do with a GGUF file, and what is wrong with the file.

file ── Header, vocabulary ──► inspect ──► facts, warnings ──► `embellama inspect`

Only the vocabulary is loaded.
"""

from collections.abc import Iterator

import msgspec

from embellama.advice.formats import faster_format
from embellama.config import EngineConfig
from embellama.errors import ModelLoadError
from embellama.gguf.compute import choose
from embellama.gguf.header import Header
from embellama.gguf.weights import Weights, has_head, is_chat_model, pooling_of
from embellama.info import ModelInfo
from embellama.jobs import Jobs
from embellama.llama import c_api
from embellama.text.pairs import TEMPLATE

# Models of these architectures are bidirectional, and were trained with a token before and after each text.
_ENCODERS = ("bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "modern-bert", "neo-bert")


class Inspection(msgspec.Struct, frozen=True):
    """Facts about one file, and warnings.

    Attributes:
        info: The file as `EmbeddingEngine.model_info` would describe it; its pooling is ``none``
            where the file does not say.
        tokenizer: Kind of vocabulary: ``bert`` (WordPiece), ``gpt2`` (byte-level BPE), ``t5`` (unigram), …
        n_vocab: Tokens in it.
        before: Tokens the engine puts before each text.
        after: Tokens it puts after each.
        warnings: Reasons why its vectors may not be those its authors meant, or why it cannot be loaded.
        faster: Another of its formats that was measured to be faster on this machine; "" if none is known.
        compute_reason: Why its layers are computed as `info.compute` says.
    """

    info: ModelInfo
    tokenizer: str
    n_vocab: int
    before: list[str]
    after: list[str]
    warnings: list[str]
    faster: str
    compute_reason: str


def inspect(config: EngineConfig) -> Inspection:
    """Inspect the file of `config`, with its settings.

    Raises:
        ConfigError: A setting is wrong.
        ModelLoadError: The file is no model the engine could load, whatever the settings.
    """
    config = config.checked()
    header = Header(config.model_path)
    try:
        pooling_of(header, config.pooling)
        refusal = None
    except ModelLoadError as error:
        refusal = error.reason
        config = msgspec.structs.replace(config, pooling="none")
    choice = choose(config)
    config = msgspec.structs.replace(config, compute=choice.compute)
    weights = Weights(config, vocab_only=True)
    jobs = Jobs(config, weights)
    tokenizer = jobs.tokenizer

    def pieces(ids: list[int]) -> list[str]:
        return [c_api.llama_vocab_get_text(weights.vocab, i).decode("utf-8", "replace") for i in ids]

    before, after = pieces(tokenizer.first.tolist()), pieces(tokenizer.last.tolist())
    warnings = [f"it cannot be loaded as it is: {refusal}"] if refusal else []
    warnings += _warnings(header, config, weights, before, after)
    return Inspection(
        info=ModelInfo.of(config, jobs, weights),
        tokenizer=header.values.get("tokenizer.ggml.model", ""),
        n_vocab=tokenizer.n_vocab,
        before=before,
        after=after,
        warnings=warnings,
        faster=faster_format(config, header),
        compute_reason=choice.reason,
    )


def _warnings(
    header: Header, config: EngineConfig, weights: Weights, before: list[str], after: list[str]
) -> Iterator[str]:
    values, architecture, pooling = header.values, header.architecture, weights.pooling
    vocabulary, pre = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")

    if is_chat_model(header) and header.get("pooling_type") is None:
        yield "it has a chat template and no pooling type: it was made to chat, not to embed"
    if pooling == "rank":
        yield "it is a reranker: it scores a query and a document together (rerank), and gives no vectors"
        n_types = values.get("tokenizer.ggml.token_type_count", 1)
        if architecture == "bert" and n_types > 1:
            yield (
                f"it has {n_types} token types, and its authors give the document's tokens the second; llama.cpp gives "
                "all tokens the first, so its scores are not quite theirs"
            )
        if architecture.startswith("qwen") and TEMPLATE not in values:
            yield f"it has no {TEMPLATE}, the text its authors put around query and document"
    elif has_head(header):
        yield f"it has a classification head, but its pooling is {pooling}: as a reranker it needs pooling rank"

    if pooling == "last" and not after:
        yield "no end token is added to texts, but its pooling is last: most such models were trained with one"
    if pooling == "last" and architecture == "qwen3" and after == ["<|im_end|>"]:
        yield "<|im_end|> is added to texts; Qwen3-Embedding was trained with <|endoftext|>"
    if pooling == "cls" and not before:
        yield "no start token is added to texts, but its pooling is cls, which is the first token's vector"
    if architecture in _ENCODERS and not (before and after):
        side = "before" if not before else "after"
        yield f"no token is added {side} texts; models of architecture {architecture} were trained with one"
    if architecture == "gemma-embedding" and not (before and after):
        yield "EmbeddingGemma was trained with <bos> before each text and <eos> after it; the file asks for fewer"

    if vocabulary == "gpt2" and pre in (None, "", "default"):
        yield "its pre-tokenizer is not named, so llama.cpp cuts words as GPT-2 does: token ids may not be its authors'"
    if vocabulary == "no_vocab":
        yield "it has no vocabulary"

    trained = header.get("rope.scaling.original_context_length", 0)
    if 0 < trained < weights.n_ctx_train:
        yield f"its context of {weights.n_ctx_train} tokens is stretched: it was trained on {trained}"
    if config.n_ctx > weights.n_ctx_train:
        yield f"n_ctx is {config.n_ctx}, but it was trained on {weights.n_ctx_train} tokens, which is the limit"

    if architecture == "jina-bert-v2" and not any(name.endswith("ffn_gate.weight") for name in header.tensors):
        yield "its gates are stored with ffn_up, in an order that differs between converters; compare its vectors"
