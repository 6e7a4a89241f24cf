"""`llama_tokenize`: llama.cpp's tokenizer, as it is.

It ends the process on some texts, and stalls on others: `LlamaVocabulary` knows which (`hazards.py`).
"""

import ctypes
from typing import Any

import numpy as np

from embellama.batch import Tokens
from embellama.llama import c_api


def llama_tokenize(vocab: Any, text: str, *, add_special: bool = False) -> Tokens:
    """Tokenize one text, which may be empty.

    Args:
        vocab: llama.cpp's pointer to the vocabulary.
        text: The text. Special tokens written out in it count as such, as in Hugging Face's tokenizers.
        add_special: Whether to put special tokens around it.

    Returns:
        Its token ids, ``(n_tokens,) int32``.
    """
    data = text.encode()
    # A byte is at most one token in every vocabulary llama.cpp knows, plus what it adds at both ends.
    tokens = np.empty(len(data) + 8, np.int32)
    n = _fill(vocab, tokens, data, add_special)
    if n < 0:  # -n is the room it wanted
        tokens = np.empty(-n, np.int32)
        n = _fill(vocab, tokens, data, add_special)
    return tokens[:n].copy()


def _fill(vocab: Any, tokens: Tokens, data: bytes, add_special: bool) -> int:
    pointer = tokens.ctypes.data_as(ctypes.POINTER(c_api.llama_token))
    n: int = c_api.llama_tokenize(vocab, data, len(data), pointer, len(tokens), add_special, True)
    return n
