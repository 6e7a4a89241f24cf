"""Text to token ids, as the model's authors meant it.

text ── Tokenizer.encode ──► token ids with the model's special tokens ──► Batch.join

Two ways, chosen by the GGUF's vocabulary:

- WordPiece (BERT and its kin): the `tokenizers` library, fed with the vocabulary in the file. llama.cpp has a
  WordPiece of its own, but it drops vowel signs (Devanagari, Bengali, …) and most of Hangul, and differs from
  the reference on about 9,800 code points; `tests/test_tokenizer.py` holds the cases.
- anything else: `llama_tokenize`.

Safe to use from several threads at once: neither way keeps state between calls.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from embellama.batch import Tokens
from embellama.errors import EmptyInput, InputError, InvalidText, InvalidToken, TextTooLong
from embellama.llama import c_api
from embellama.weights import Weights

# A text of more characters than this for each token of the limit is tried by its head first, so that megabytes need
# not be tokenised to be refused. English has 4 to 5 characters a token; larger reads more of a hopeless text.
HEAD_CHARACTERS = 32

# WordPiece reads a longer word as one unknown token, so cutting a text inside a word adds fewer tokens than this.
WORD_CHARACTERS = 100


class Tokenizer:
    """Turns texts into token ids for one model.

    Attributes:
        limit: Most tokens one text may have, special tokens included.
        n_vocab: Ids run from 0 to ``n_vocab - 1``.
    """

    def __init__(self, weights: Weights, limit: int = 0):
        """Use the vocabulary of `weights` (a `vocab_only` load is enough); `limit` 0 takes the model's own."""
        self._weights = weights  # keeps the vocabulary alive
        self.limit = min(limit, weights.n_ctx_train) if limit else weights.n_ctx_train
        self.n_vocab = c_api.llama_vocab_n_tokens(weights.vocab)
        word_piece = c_api.llama_vocab_type(weights.vocab) == c_api.LLAMA_VOCAB_TYPE_WPM
        self._tokenize: Callable[[Sequence[str]], Iterator[Tokens]] = (
            WordPiece(weights) if word_piece else LlamaTokenize(weights)
        )

    def encode(self, texts: Iterable[str]) -> list[Tokens]:
        """Tokenise texts, special tokens included.

        Returns:
            For each text in order its token ids, ``(n_tokens,) int32``.

        Raises:
            InputError: `texts` is one `str`.
            InvalidText: A text is not a `str`, or holds half of a surrogate pair.
            EmptyInput: A text is empty, or has no tokens.
            TextTooLong: A text has more than `limit` tokens.
        """
        if isinstance(texts, str):
            raise InputError("texts is one str, not a list of them; to embed one text, call embed")
        texts = list(texts)
        for index, text in enumerate(texts):
            _check_text(index, text)
            self._check_head(index, text)
        return [self._fits(index, tokens) for index, tokens in enumerate(self._tokenize(texts))]

    def check(self, texts: Sequence[Sequence[int]]) -> list[Tokens]:
        """Check lists of token ids, which are used as they are: no special token is added.

        Returns:
            For each text in order its token ids, ``(n_tokens,) int32``.

        Raises:
            EmptyInput: A text has no tokens.
            TextTooLong: A text has more than `limit` tokens.
            InvalidToken: An id is not in the vocabulary.
        """
        checked = []
        for index, ids in enumerate(texts):
            if not ids:
                raise EmptyInput(index)
            if len(ids) > self.limit:
                raise TextTooLong(index, len(ids), self.limit)
            if not 0 <= min(ids) <= max(ids) < self.n_vocab:
                raise InvalidToken(index, next(i for i in ids if not 0 <= i < self.n_vocab), self.n_vocab)
            checked.append(np.array(ids, np.int32))
        return checked

    def _check_head(self, index: int, text: str) -> None:
        """Refuse a text whose head alone has too many tokens."""
        n = self.limit * HEAD_CHARACTERS
        if len(text) > n:
            [tokens] = self._tokenize([text[:n]])
            n_sure = len(tokens) - WORD_CHARACTERS
            if n_sure > self.limit:
                raise TextTooLong(index, n_sure, self.limit, at_least=True)

    def _fits(self, index: int, tokens: Tokens) -> Tokens:
        if len(tokens) == 0:
            raise EmptyInput(index)
        if len(tokens) > self.limit:
            raise TextTooLong(index, len(tokens), self.limit)
        return tokens


def _check_text(index: int, text: str) -> None:
    if not isinstance(text, str):
        raise InvalidText(index, f"is {type(text).__name__}, not str")
    if not text:
        raise EmptyInput(index)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(index, f"is not valid Unicode: lone surrogate at character {error.start}") from None


class LlamaTokenize:
    """llama.cpp's tokenizer; special tokens written out in a text count as such, as in Hugging Face's."""

    def __init__(self, weights: Weights):
        self._vocab = weights.vocab

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]:
        return map(self.one, texts)

    def one(self, text: str) -> Tokens:
        """Tokenise one text, which may be empty; ``(n_tokens,) int32``."""
        data = text.encode()
        # A byte is at most one token in every vocabulary llama.cpp knows, plus what it adds at both ends.
        tokens = np.empty(len(data) + 8, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(c_api.llama_token))
        n = c_api.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), True, True)
        if n < 0:  # -n is the room it wanted
            tokens = np.empty(-n, np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(c_api.llama_token))
            n = c_api.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), True, True)
        return tokens[:n].copy()


class WordPiece:
    """BERT's tokenizer on the vocabulary of a GGUF file.

    llama.cpp stores a word's first piece as "▁piece" and its later pieces bare, where BERT's vocabulary has
    "piece" and "##piece" (`convert_hf_to_gguf.py`, `BertModel.set_vocab`).
    """

    def __init__(self, weights: Weights):
        vocab = weights.vocab
        stored = [c_api.llama_vocab_get_text(vocab, i).decode() for i in range(c_api.llama_vocab_n_tokens(vocab))]
        pieces = [_piece(text) for text in stored]
        special = c_api.LLAMA_TOKEN_ATTR_CONTROL | c_api.LLAMA_TOKEN_ATTR_UNKNOWN | c_api.LLAMA_TOKEN_ATTR_USER_DEFINED
        added = [piece for i, piece in enumerate(pieces) if c_api.llama_vocab_get_attr(vocab, i) & special]

        unknown = weights.metadata("tokenizer.ggml.unknown_token_id")
        self._tokenizer = tokenizers.Tokenizer(
            models.WordPiece(
                {piece: i for i, piece in enumerate(pieces)},
                unk_token=pieces[int(unknown)] if unknown else "[UNK]",
                max_input_chars_per_word=WORD_CHARACTERS,
            )
        )
        lowercase = weights.metadata("tokenizer.ggml.normalizer.lowercase") != "false"
        strip_accents = weights.metadata("tokenizer.ggml.normalizer.strip_accents")
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=lowercase, strip_accents=None if strip_accents is None else strip_accents == "true"
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.add_special_tokens(
            [tokenizers.AddedToken(piece, special=True, normalized=False) for piece in added]
        )
        # What llama.cpp puts around nothing is what it puts around a text: [CLS] and [SEP].
        ends = LlamaTokenize(weights).one("").tolist()
        self._first, self._last = ends[: (len(ends) + 1) // 2], ends[(len(ends) + 1) // 2 :]

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]:
        # Unlike one text after another, a batch is tokenised with Python's lock released.
        for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            yield np.array([*self._first, *encoding.ids, *self._last], np.int32)


def _piece(stored: str) -> str:
    if stored.startswith("▁"):
        return stored[1:]
    if stored.startswith("[") and stored.endswith("]"):
        return stored
    return f"##{stored}"
