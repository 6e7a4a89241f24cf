"""Turn texts into the token ids that a model was trained with, and cut those that are too long.

text ── Vocabulary ──► its own ids ── cut to the limit ──► ids between the special tokens ──► Batch.join

The GGUF file's vocabulary is `WordPiece` (BERT and its kin) or a `LlamaVocabulary` (all others). A `Tokenizer` may be
used from several threads at once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Tokens
from embellama.errors import (
    ConfigError,
    EmptyInput,
    InputError,
    InvalidText,
    InvalidToken,
    TextTooLong,
    check_number,
)
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from embellama.options import Truncate
from embellama.text.llama_tokenize import llama_tokenize
from embellama.text.llama_vocabulary import LlamaVocabulary
from embellama.text.vocabulary import Vocabulary
from embellama.text.word_piece import WORD_CHARACTERS, WordPiece

# A text of more characters than this for each token of the limit is tried by its head first, so that megabytes need
# not be tokenized to be refused. English has 4 to 5 characters a token; larger reads more of a hopeless text.
HEAD_CHARACTERS = 32


class Tokenized(NamedTuple):
    """Texts as token ids.

    tokens: For each text in order its ids, special tokens included, ``(n_tokens,) int32``.
    n_cut: How many of each text's tokens were left out, ``(n_texts,) int32``.
    """

    tokens: list[Tokens]
    n_cut: NDArray[np.int32]


class Piece(NamedTuple):
    """One token of a text.

    id: Its number in the vocabulary.
    text: The token as the vocabulary writes it.
    special: Whether it is a special token, such as ``[CLS]``, which stands for no text.
    start: Its first character in the text; None for a special one, and where the vocabulary does not tell.
    stop: The character after its last.
    """

    id: int
    text: str
    special: bool
    start: int | None = None
    stop: int | None = None


class Tokenizer:
    """Turns texts into token ids for one model.

    Attributes:
        limit: Most tokens one text may have, special tokens included.
        n_vocab: Ids run from 0 to ``n_vocab - 1``.
        first: Ids that go before every text, ``(n,) int32``.
        last: Ids that go after every text, ``(n,) int32``.
    """

    def __init__(self, weights: Weights, limit: int = 0):
        """Use the vocabulary of `weights` (a `vocab_only` load is enough); `limit` 0 takes the model's own."""
        self._weights = weights  # keeps the vocabulary alive
        self.limit = min(limit, weights.n_ctx_train) if limit else weights.n_ctx_train
        self.n_vocab = c_api.llama_vocab_n_tokens(weights.vocab)
        word_piece = c_api.llama_vocab_type(weights.vocab) == c_api.LLAMA_VOCAB_TYPE_WPM
        self._vocabulary: Vocabulary = WordPiece(weights) if word_piece else LlamaVocabulary(weights)
        # What llama.cpp puts around nothing is what it puts around a text.
        ends = llama_tokenize(weights.vocab, "", add_special=True)
        n_first = int(word_piece or c_api.llama_vocab_get_add_bos(weights.vocab))
        self.first, self.last = ends[:n_first], ends[n_first:]
        if self.limit <= self.n_special:
            raise ConfigError(f"n_ctx is {limit}; this model needs {self.n_special} special tokens and one of a text")

    @property
    def n_special(self) -> int:
        """How many ids go around every text."""
        return len(self.first) + len(self.last)

    def encode(self, texts: Iterable[str], truncate: Truncate = "none") -> Tokenized:
        """Tokenize texts.

        Args:
            texts: The texts.
            truncate: What to do with a text of more than `limit` tokens: raise (``none``), or leave out its ``end`` or
                its ``start``. A number of tokens leaves out the end of texts that have more, special tokens included.

        Raises:
            InputError: `texts` is one `str`, or `truncate` is not one of the above or out of range.
            InvalidText: A text is not a `str`, holds half of a surrogate pair, or crashes or stalls llama.cpp's
                tokenizer (`hazards.py`).
            EmptyInput: A text is empty, or has no tokens.
            TextTooLong: A text has more than `limit` tokens, and `truncate` is ``none``.
        """
        limit = self.limit_for(truncate)
        texts = checked(texts)
        if truncate == "none":
            for index, text in enumerate(texts):
                self._check_head(index, text)
        room = limit - self.n_special
        tokens: list[Tokens] = []
        n_cut = np.zeros(len(texts), np.int32)
        for index, ids in enumerate(self._vocabulary(texts)):
            if len(ids) + self.n_special == 0:
                raise EmptyInput(index)
            if len(ids) > room:
                if truncate == "none":
                    raise TextTooLong(index, len(ids) + self.n_special, limit)
                n_cut[index] = len(ids) - room
                ids = ids[-room:] if truncate == "start" else ids[:room]
            tokens.append(self.wrap(ids))
        return Tokenized(tokens, n_cut)

    def bare(self, texts: Iterable[str]) -> list[Tokens]:
        """Tokenize texts of any length without special tokens; `wrap` adds them. Raises as `encode` does."""
        return list(self._vocabulary(checked(texts)))

    def wrap(self, ids: Tokens) -> Tokens:
        """Put the special tokens around the ids of one text, ``(n,) int32``."""
        return np.concatenate((self.first, ids, self.last))

    def pieces(self, text: str, *, special: bool = True) -> list[Piece]:
        """Show the tokens of one text of any length, with the special ones around it unless `special` is off.

        Raises as `encode` does.
        """
        checked([text])
        inner = [self._piece(int(id), *span) for id, *span in self._vocabulary.spans(text)]
        if not special:
            return inner
        first, last = ([self._piece(int(id)) for id in ids] for ids in (self.first, self.last))
        return [*first, *inner, *last]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids, special tokens written out only with `special`.

        What the tokenizer dropped, such as capital letters, does not come back.

        Raises:
            InvalidToken: An id is not in the vocabulary.
        """
        self._check_known(0, ids)
        return self._vocabulary.decode(ids, special)

    def within(self, text: str, spans: Iterable[tuple[int, int]]) -> NDArray[np.int32]:
        """Find the tokens of parts of a text.

        Args:
            text: A text, tokenized as a whole.
            spans: First character and the one after the last of each part. A token that is partly in it belongs to it.

        Returns:
            First token of `bare` and the one after the last of each part, ``(n, 2) int32``; the same if it has none.

        Raises:
            InvalidText: The text, or a part of it, crashes or stalls llama.cpp's tokenizer.
        """
        return np.array(list(self._vocabulary.within(text, spans)), np.int32).reshape(-1, 2)

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
            self._check_known(index, ids)
            checked.append(np.array(ids, np.int32))
        return checked

    def limit_for(self, truncate: Truncate) -> int:
        """Return how many tokens a text may have under `truncate`; raise `InputError` if that is wrong."""
        if truncate in ("none", "end", "start"):
            return self.limit
        allowed = (
            f"it must be none, end, start or a number of tokens from {self.n_special + 1} to {self.limit}, of which "
            f"{self.n_special} are special"
        )
        check_number("truncate", truncate, allowed, self.n_special + 1, self.limit)
        return int(truncate)

    def _check_known(self, index: int, ids: Sequence[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self.n_vocab:
            raise InvalidToken(index, next(i for i in ids if not 0 <= i < self.n_vocab), self.n_vocab)

    def _piece(self, id: int, start: int | None = None, stop: int | None = None) -> Piece:
        special = bool(c_api.llama_vocab_is_control(self._weights.vocab, id))
        return Piece(id, self._vocabulary.text(id), special, start, stop)

    def _check_head(self, index: int, text: str) -> None:
        """Refuse a text whose head alone has too many tokens."""
        n = self.limit * HEAD_CHARACTERS
        if len(text) > n:
            [ids] = self._vocabulary([text[:n]])
            # The head may end inside a word, and the part of one may have more tokens than the word: WordPiece makes
            # one unknown token of a longer word than this.
            n_sure = len(ids) + self.n_special - WORD_CHARACTERS
            if n_sure > self.limit:
                raise TextTooLong(index, n_sure, self.limit, at_least=True)


def checked(texts: Iterable[str]) -> list[str]:
    """Return texts that can be tokenized; raise `InputError`, `InvalidText` or `EmptyInput` for others."""
    if isinstance(texts, str):
        raise InputError("texts is one str, not a list of them; to embed one text, call embed")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidText(index, f"is {type(text).__name__}, not str")
        if not text:
            raise EmptyInput(index)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(index, f"is not valid Unicode: lone surrogate at character {error.start}") from None
    return texts
