"""Vocabularies for tiny models, of each kind that embedding models have.

All know the words in `WORDS`, alone and joined by spaces, and the letters from a to z.
"""

from collections.abc import Callable, Sequence

import gguf

WORDS = ["red", "green", "blue", "one", "two", "three", "poison", *"abcdefghijklmnopqrstuvwxyz"]
POISON = "poison"  # its embedding is not a number

AddVocabulary = Callable[[gguf.GGUFWriter], list[str]]
"""Adds a vocabulary to a file and returns its pieces by id."""

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = (
    gguf.TokenType.NORMAL,
    gguf.TokenType.UNKNOWN,
    gguf.TokenType.CONTROL,
    gguf.TokenType.BYTE,
)


def word_piece(writer: gguf.GGUFWriter, more: Sequence[str] = ()) -> list[str]:
    """Add BERT's kind, with `more` words: whole words after "▁", [CLS] and [SEP] around a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *(f"▁{word}" for word in (*WORDS, *more))]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(pieces)
    writer.add_token_types([_CONTROL] * len(special) + [_NORMAL] * (len(pieces) - len(special)))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    return pieces


def unigram(writer: gguf.GGUFWriter) -> list[str]:
    """Add T5's kind: pieces with scores, </s> after a text."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = _add_unigram(writer, special)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)
    return pieces


def xlm_roberta(writer: gguf.GGUFWriter) -> list[str]:
    """Add XLM-RoBERTa's kind: T5's, with <s> and </s> around a text."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = _add_unigram(writer, special)
    writer.add_bos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_sep_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    return pieces


def _add_unigram(writer: gguf.GGUFWriter, special: list[str]) -> list[str]:
    letters = [word for word in WORDS if len(word) == 1]
    pieces = [*special, *(f"▁{word}" for word in WORDS), "▁", *letters]
    n_special, n_letters = len(special), len(letters) + 1
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    # A whole word is likelier than its letters one by one.
    writer.add_token_scores([0.0] * n_special + [-2.0] * len(WORDS) + [-9.0] * n_letters)
    # "<unk>" comes last of the special ones.
    writer.add_token_types([_CONTROL] * (n_special - 1) + [_UNKNOWN] + [_NORMAL] * (len(pieces) - n_special))
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    return pieces


def gemma(writer: gguf.GGUFWriter) -> list[str]:
    """Add Gemma's kind of SentencePiece: merges by score, bytes for the rest, <bos> and <eos> around a text."""
    return _add_sentence_piece(writer, ["<pad>", "<eos>", "<bos>", "<unk>"], bos=2, eos=1, unknown=3, prefix=False)


def mistral(writer: gguf.GGUFWriter) -> list[str]:
    """Add Mistral's kind of SentencePiece: Gemma's, with a space before a text."""
    return _add_sentence_piece(writer, ["<unk>", "<s>", "</s>"], bos=1, eos=2, unknown=0, prefix=True)


def _add_sentence_piece(
    writer: gguf.GGUFWriter, special: list[str], *, bos: int, eos: int, unknown: int, prefix: bool
) -> list[str]:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    merged = [piece for _, piece in _merges("▁")]
    pieces = [*special, *bytes_, *merged, *characters]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    ranks = [-float(rank) for rank in range(len(merged) + len(characters))]
    writer.add_token_scores([-1000.0] * (len(special) + len(bytes_)) + ranks)
    types = [_UNKNOWN if i == unknown else _CONTROL for i in range(len(special))]
    writer.add_token_types(types + [_BYTE] * len(bytes_) + [_NORMAL] * len(ranks))
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(unknown)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(prefix)
    return pieces


def modern_bert(writer: gguf.GGUFWriter) -> list[str]:
    """Add ModernBERT's kind of byte-level BPE: [CLS] and [SEP] around a text."""
    return _add_byte_level(writer, "modern-bert", ["[CLS]", "[SEP]", "[PAD]"], bos=0, eos=1, sep=1)


def roberta(writer: gguf.GGUFWriter) -> list[str]:
    """Add RoBERTa's kind of byte-level BPE: <s> and </s> around a text."""
    return _add_byte_level(writer, "roberta-bpe", ["<s>", "<pad>", "</s>"], bos=0, eos=2, sep=2)


def jina_code(writer: gguf.GGUFWriter) -> list[str]:
    """Add jina-embeddings-v2-base-code's kind of byte-level BPE: <s> and </s> around a text."""
    return _add_byte_level(writer, "jina-v2-code", ["<s>", "<pad>", "</s>"], bos=0, eos=2, sep=2)


def qwen(writer: gguf.GGUFWriter, pre: str = "qwen2") -> list[str]:
    """Add Qwen's kind of byte-level BPE: nothing before a text, <|endoftext|> after it; `pre` cuts it into words."""
    return _add_byte_level(writer, pre, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos=None, eos=0, sep=None)


def eurobert(writer: gguf.GGUFWriter) -> list[str]:
    """Add EuroBERT's kind of byte-level BPE: Llama 3's, nothing before a text and <|end_of_text|> after it."""
    return _add_byte_level(writer, "llama-bpe", ["<|begin_of_text|>", "<|end_of_text|>"], bos=None, eos=1, sep=None)


def llama(writer: gguf.GGUFWriter) -> list[str]:
    """Add Llama 3's kind of byte-level BPE: <|begin_of_text|> before a text, nothing after it."""
    return _add_byte_level(writer, "llama-bpe", ["<|begin_of_text|>", "<|end_of_text|>"], bos=0, eos=None, sep=None)


def _add_byte_level(
    writer: gguf.GGUFWriter, pre: str, special: list[str], *, bos: int | None, eos: int | None, sep: int | None
) -> list[str]:
    """Add a byte-level BPE; an end that is None is not added to texts."""
    merges = _merges("Ġ")
    pieces = [*special, *_BYTES, *(piece for _, piece in merges)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types([_CONTROL] * len(special) + [_NORMAL] * (len(pieces) - len(special)))
    writer.add_token_merges([pair for pair, _ in merges])
    writer.add_bos_token_id(bos or 0)
    writer.add_eos_token_id(eos or 0)
    if sep is not None:
        writer.add_sep_token_id(sep)
        writer.add_add_sep_token(True)
    writer.add_add_bos_token(bos is not None)
    writer.add_add_eos_token(eos is not None)
    return pieces


def _merges(space: str) -> list[tuple[str, str]]:
    """Return what builds "␣red" and "red" from characters, such as ("␣r e", "␣re"), in the order of application."""
    merges: dict[str, str] = {}
    for word in [*(space + word for word in WORDS), *WORDS]:
        for end in range(1, len(word)):
            merges.setdefault(word[: end + 1], f"{word[:end]} {word[end]}")
    return [(pair, piece) for piece, pair in merges.items()]


def _byte_characters() -> list[str]:
    """Return GPT-2's character for each byte: itself if it prints, else one from U+0100 on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


_BYTES = _byte_characters()
