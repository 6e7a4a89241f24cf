"""WordPiece (BERT and its kin), computed by the `tokenizers` library on the vocabulary in a GGUF file.

llama.cpp has a WordPiece of its own, but it drops vowel signs (Devanagari, Bengali, …) and most of Hangul, and differs
from the reference on about 9,800 code points; `tests/text/test_word_piece.py` holds the cases.

short plain text ── each word looked up ──► ids
any other text ── tokenizers.Tokenizer ──► ids
"""

import bisect
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from embellama.batch import Tokens
from embellama.errors import ModelLoadError
from embellama.gguf.weights import Weights
from embellama.llama import c_api

# A longer word is one unknown token.
WORD_CHARACTERS = 100

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
        # Unlike one text after another, a batch is tokenized with Python's lock released.
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
