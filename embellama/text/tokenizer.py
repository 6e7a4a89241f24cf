"""Text to token ids, as the model's authors meant it.

text ── a vocabulary's way ──► its own ids ── cut to the limit ──► ids between the special tokens ──► Batch.join

Two ways, chosen by the GGUF's vocabulary:

- WordPiece (BERT and its kin): the `tokenizers` library, fed with the vocabulary in the file. llama.cpp has a
  WordPiece of its own, but it drops vowel signs (Devanagari, Bengali, …) and most of Hangul, and differs from
  the reference on about 9,800 code points; `tests/test_tokenizer.py` holds the cases.
- anything else: `llama_tokenize`.

Safe to use from several threads at once: neither way keeps state between calls.
"""

import bisect
import ctypes
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers

from embellama.batch import Tokens
from embellama.errors import (
    ConfigError,
    EmptyInput,
    InputError,
    InvalidText,
    InvalidToken,
    ModelLoadError,
    TextTooLong,
    check_number,
)
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from embellama.options import Truncate

# A text of more characters than this for each token of the limit is tried by its head first, so that megabytes need
# not be tokenised to be refused. English has 4 to 5 characters a token; larger reads more of a hopeless text.
HEAD_CHARACTERS = 32

# WordPiece reads a longer word as one unknown token, so cutting a text inside a word adds fewer tokens than this.
WORD_CHARACTERS = 100


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
    text: What the vocabulary has for it.
    special: Whether it marks something rather than stands for text.
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
        self._vocabulary: _Vocabulary = WordPiece(weights) if word_piece else LlamaTokenize(weights)
        # What llama.cpp puts around nothing is what it puts around a text.
        ends = LlamaTokenize(weights).one("", add_special=True)
        n_first = int(word_piece or c_api.llama_vocab_get_add_bos(weights.vocab))
        self.first, self.last = ends[:n_first], ends[n_first:]
        if self.limit <= self.n_special:
            raise ConfigError(f"n_ctx is {limit}; this model needs {self.n_special} special tokens and one of a text")

    @property
    def n_special(self) -> int:
        """How many ids go around every text."""
        return len(self.first) + len(self.last)

    def encode(self, texts: Iterable[str], truncate: Truncate = "none") -> Tokenized:
        """Tokenise texts.

        Args:
            texts: What to tokenise.
            truncate: What to do with a text of more than `limit` tokens: raise (``none``), or leave out its ``end`` or
                its ``start``. A number of tokens leaves out the end of texts that have more, special tokens included.

        Raises:
            InputError: `texts` is one `str`, or `truncate` is not one of the above or out of range.
            InvalidText: A text is not a `str`, or holds half of a surrogate pair.
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
        """Tokenise texts of any length without special tokens; `wrap` adds them. Raises as `encode` does."""
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
            text: A text, tokenised as a whole.
            spans: First character and the one after the last of each part. A token that is partly in it belongs to it.

        Returns:
            First token of `bare` and the one after the last of each part, ``(n, 2) int32``; the same if it has none.
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
            n_sure = len(ids) + self.n_special - WORD_CHARACTERS
            if n_sure > self.limit:
                raise TextTooLong(index, n_sure, self.limit, at_least=True)


def checked(texts: Iterable[str]) -> list[str]:
    """Return texts that can be tokenised; raise `InputError`, `InvalidText` or `EmptyInput` for others."""
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


class _Vocabulary(Protocol):
    """One way to turn texts into ids, without special tokens around them."""

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]: ...

    def within(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]: ...

    def spans(self, text: str) -> Iterator[tuple[int, int | None, int | None]]:
        """Give each token with its first character and the one after its last, if they are known."""

    def text(self, id: int) -> str:
        """Return what the vocabulary has for a token."""

    def decode(self, ids: Sequence[int], special: bool) -> str: ...


class LlamaTokenize:
    """llama.cpp's tokenizer; special tokens written out in a text count as such, as in Hugging Face's."""

    def __init__(self, weights: Weights):
        self._vocab = weights.vocab
        # Unigram vocabularies drop spaces and join unknown characters.
        kinds = (c_api.LLAMA_VOCAB_TYPE_BPE, c_api.LLAMA_VOCAB_TYPE_SPM)
        self._keeps_bytes = c_api.llama_vocab_type(self._vocab) in kinds

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]:
        return map(self.one, texts)

    def one(self, text: str, add_special: bool = False) -> Tokens:
        """Tokenise one text, which may be empty; ``(n_tokens,) int32``."""
        data = text.encode()
        # A byte is at most one token in every vocabulary llama.cpp knows, plus what it adds at both ends.
        tokens = np.empty(len(data) + 8, np.int32)
        n = self._fill(tokens, data, add_special)
        if n < 0:  # -n is the room it wanted
            tokens = np.empty(-n, np.int32)
            n = self._fill(tokens, data, add_special)
        return tokens[:n].copy()

    def within(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        # llama.cpp does not tell where a token comes from.
        ids = self.one(text)
        ends = self._ends(text, ids) if self._keeps_bytes else None
        if ends is None:
            yield from self._within_by_heads(text, ids, spans)
            return
        starts = [0, *ends]
        for start, end in spans:
            first, last = (len(text[:place].encode()) for place in (start, end))
            yield bisect.bisect_right(ends, first) if start else 0, bisect.bisect_left(starts, last, hi=len(ends))

    def spans(self, text: str) -> Iterator[tuple[int, int | None, int | None]]:
        ids = self.one(text)
        ends = self._ends(text, ids) if self._keeps_bytes else None
        if ends is None:
            yield from ((int(id), None, None) for id in ids)
            return
        # A token may end inside a character, which then belongs to it and to the next.
        n_bytes = list(itertools.accumulate(len(character.encode()) for character in text))
        start = 0
        for id, end in zip(ids, ends, strict=True):
            yield int(id), bisect.bisect_right(n_bytes, start), bisect.bisect_left(n_bytes, end) + (end > 0)
            start = max(end, 0)

    def text(self, id: int) -> str:
        return self._piece(id).decode(errors="replace")

    def decode(self, ids: Sequence[int], special: bool) -> str:
        tokens = np.array(ids, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(c_api.llama_token))
        data = ctypes.create_string_buffer(16 * len(tokens) + 16)
        n = c_api.llama_detokenize(self._vocab, pointer, len(tokens), data, len(data), not special, special)
        if n < 0:  # -n is the room it wanted
            data = ctypes.create_string_buffer(-n)
            n = c_api.llama_detokenize(self._vocab, pointer, len(tokens), data, len(data), not special, special)
        return data.raw[:n].decode(errors="replace")

    def _ends(self, text: str, ids: Tokens) -> list[int] | None:
        """Return where in the text's bytes each token ends; None if tokens are not just the text's bytes."""
        pieces = {token: self._piece(token) for token in set(ids.tolist())}
        ends = list(itertools.accumulate(len(pieces[token]) for token in ids.tolist()))
        data, joined = text.encode(), b"".join(pieces[token] for token in ids.tolist())
        n_added = len(joined) - len(data)
        if joined != b" " * n_added + data:  # SentencePiece may begin with a space of its own
            return None
        return [end - n_added for end in ends]

    def _within_by_heads(self, text: str, ids: Tokens, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        # Where a text is cut between two tokens, what is before the cut has the tokens it has in the whole text.
        def n_before(place: int, step: int) -> int:
            while 0 < place < len(text):
                head = self.one(text[:place])
                if np.array_equal(head, ids[: len(head)]):
                    return len(head) - (step < 0 and self._goes_on(head, text, place))
                place += step  # inside a token: out of it
            return 0 if place <= 0 else len(ids)

        for start, end in spans:
            yield n_before(start, -1), n_before(end, +1)

    def _goes_on(self, head: Tokens, text: str, place: int) -> bool:
        """Tell whether the last token before `place` is for unknown characters, of which the next is one more."""
        if not len(head) or not c_api.llama_vocab_get_attr(self._vocab, head[-1]) & c_api.LLAMA_TOKEN_ATTR_UNKNOWN:
            return False
        # A space adds no token either, but is none alone.
        no_more, alone = self.one(text[: place + 1]), self.one(text[place])
        return np.array_equal(no_more, head) and np.array_equal(alone[-1:], head[-1:])

    def _piece(self, token: int) -> bytes:
        """Return what a token stands for, special ones as they are written."""
        data = ctypes.create_string_buffer(64)
        n = c_api.llama_token_to_piece(self._vocab, token, data, len(data), 0, True)
        if n < 0:  # -n is the room it wanted
            data = ctypes.create_string_buffer(-n)
            n = c_api.llama_token_to_piece(self._vocab, token, data, len(data), 0, True)
        return data.raw[:n]

    def _fill(self, tokens: Tokens, data: bytes, add_special: bool) -> int:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(c_api.llama_token))
        n: int = c_api.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), add_special, True)
        return n


# Text that needs no Unicode: BERT's rules for it are to cut at spaces and around punctuation, and to lowercase.
_PLAIN = re.compile(r"[\t\n\r -~]*")
_PUNCTUATION = r"!-/:-@\[-`{-~"
_WORD = re.compile(rf"[^\s{_PUNCTUATION}]+|[{_PUNCTUATION}]")

# A plain text of up to so many characters is looked up word by word; of longer ones, Python's lock would be held too
# long.
PLAIN_CHARACTERS = 10_000

# So many words are remembered, of up to so many letters: some 20 MB. More than a language's common ones do not pay.
REMEMBERED_WORDS = 100_000
REMEMBERED_LETTERS = 32


class WordPiece:
    """BERT's tokenizer on the vocabulary of a GGUF file.

    A word's pieces do not depend on what is around it, so those of common words are remembered: a short plain text then
    takes 10 µs instead of 45.

    llama.cpp stores a word's first piece as "▁piece" and its later pieces bare, where BERT's vocabulary has
    "piece" and "##piece" (`convert_hf_to_gguf.py`, `BertModel.set_vocab`).
    """

    def __init__(self, weights: Weights):
        vocab, values = weights.vocab, weights.header.values
        try:
            stored = [c_api.llama_vocab_get_text(vocab, i).decode() for i in range(c_api.llama_vocab_n_tokens(vocab))]
        except UnicodeDecodeError as error:
            raise ModelLoadError(weights.path, f"its vocabulary is not UTF-8: {error}") from None
        pieces = [_piece(text) for text in stored]
        special = c_api.LLAMA_TOKEN_ATTR_CONTROL | c_api.LLAMA_TOKEN_ATTR_UNKNOWN | c_api.LLAMA_TOKEN_ATTR_USER_DEFINED
        added = [piece for i, piece in enumerate(pieces) if c_api.llama_vocab_get_attr(vocab, i) & special]

        unknown = values.get("tokenizer.ggml.unknown_token_id")
        self._tokenizer = tokenizers.Tokenizer(
            models.WordPiece(
                {piece: i for i, piece in enumerate(pieces)},
                unk_token="[UNK]" if unknown is None else pieces[unknown],
                max_input_chars_per_word=WORD_CHARACTERS,
            )
        )
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            # Few files say. A vocabulary with capital letters is of no use to lowercased text.
            lowercase=values.get("tokenizer.ggml.normalizer.lowercase", not _has_capitals(pieces, added)),
            strip_accents=values.get("tokenizer.ggml.normalizer.strip_accents"),
        )
        self._lowercase: bool = self._tokenizer.normalizer.lowercase
        self._special = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        self._words: dict[str, list[int]] = {}
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.decoder = decoders.WordPiece()
        self._tokenizer.add_special_tokens(
            [tokenizers.AddedToken(piece, special=True, normalized=False) for piece in added]
        )

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]:
        looked_up = [self._look_up(text) for text in texts]
        # Unlike one text after another, a batch is tokenised with Python's lock released.
        rest = [text for text, ids in zip(texts, looked_up, strict=True) if ids is None]
        encodings = iter(self._tokenizer.encode_batch_fast(rest, add_special_tokens=False) if rest else ())
        for ids in looked_up:
            yield np.array(next(encodings).ids if ids is None else ids, np.int32)

    def _look_up(self, text: str) -> list[int] | None:
        """Return the ids of a plain text, or None for one that is not."""
        if len(text) > PLAIN_CHARACTERS or not _PLAIN.fullmatch(text) or self._special.search(text):
            return None
        words, ids = self._words, []
        for word in _WORD.findall(text.lower() if self._lowercase else text):
            pieces = words.get(word)
            ids += self._learn(word) if pieces is None else pieces
        return ids

    def _learn(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(word) <= REMEMBERED_LETTERS:
            if len(self._words) >= REMEMBERED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def within(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        offsets = self._encode(text).offsets
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        for start, end in spans:
            yield bisect.bisect_right(ends, start), bisect.bisect_left(starts, end)

    def spans(self, text: str) -> Iterator[tuple[int, int | None, int | None]]:
        encoding = self._encode(text)
        for id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            yield id, start, stop

    def text(self, id: int) -> str:
        return self._tokenizer.id_to_token(id) or ""

    def decode(self, ids: Sequence[int], special: bool) -> str:
        [text] = self._tokenizer.decode_batch([list(ids)], skip_special_tokens=not special)
        return text

    def _encode(self, text: str) -> tokenizers.Encoding:
        [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=False)  # `encode` holds Python's lock
        return encoding


def _has_capitals(pieces: Sequence[str], special: Iterable[str]) -> bool:
    return any(piece.isascii() and piece.lower() != piece for piece in set(pieces).difference(special))


def _piece(stored: str) -> str:
    if stored.startswith("▁"):
        return stored[1:]
    if stored.startswith("[") and stored.endswith("]"):
        return stored
    return f"##{stored}"
