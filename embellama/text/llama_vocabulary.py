"""llama.cpp's own tokenizer, for every vocabulary but WordPiece.

text ──┬── llama_tokenize ─────────────────────┬──► ids ── llama_detokenize ──► text
       └── a hazardous one: IsolatedVocabulary ┘

llama.cpp does not tell which characters a token comes from. Where a vocabulary keeps every byte of a text, the tokens'
lengths tell; elsewhere, heads of the text are tokenized until one ends where the part begins.
"""

import bisect
import ctypes
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from embellama.batch import Tokens
from embellama.deadline import check_deadline
from embellama.errors import InvalidText
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from embellama.text.hazards import Hazards
from embellama.text.isolated_vocabulary import IsolatedVocabulary, TokenizerFailed
from embellama.text.llama_tokenize import llama_tokenize

# Where one of two characters of space is " ", llama.cpp asserts that nobody asks for their merge.
_SPACES = re.compile(r"\s{2,}")


class LlamaVocabulary:
    """A vocabulary read by llama.cpp.

    Special tokens written out in a text count as such, as in Hugging Face's tokenizers.
    """

    def __init__(self, weights: Weights):
        self._vocab = weights.vocab
        self._pre = str(weights.header.values.get("tokenizer.ggml.pre", ""))
        self._hazards = Hazards(c_api.llama_vocab_type(self._vocab), self._pre)
        self._isolated = IsolatedVocabulary(weights.path)
        # Unigram vocabularies drop spaces and join unknown characters.
        kinds = (c_api.LLAMA_VOCAB_TYPE_BPE, c_api.LLAMA_VOCAB_TYPE_SPM)
        self._keeps_bytes = c_api.llama_vocab_type(self._vocab) in kinds

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]:
        for index, text in enumerate(texts):
            yield self._one(text, index)

    def _one(self, text: str, index: int = 0) -> Tokens:
        check_deadline()
        text = self._harmless(text)
        if text not in self._hazards:
            return llama_tokenize(self._vocab, text)
        try:
            return self._isolated.tokenize(text)
        except TokenizerFailed as error:
            raise InvalidText(index, f"cannot be tokenized: {error}") from None

    def _harmless(self, text: str) -> str:
        """Leave out spaces that end the process in llama.cpp, and are no part of any token of such a vocabulary."""
        return _SPACES.sub(lambda run: " " if " " in run[0] else run[0], text) if self._pre == "whitespace" else text

    def within(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        # llama.cpp does not tell where a token comes from.
        ids = self._one(text)
        ends = self._ends(text, ids) if self._keeps_bytes else None
        if ends is None:
            yield from self._within_by_heads(text, ids, spans)
            return
        starts = [0, *ends]
        for start, end in spans:
            first, last = (len(text[:place].encode()) for place in (start, end))
            yield bisect.bisect_right(ends, first) if start else 0, bisect.bisect_left(starts, last, hi=len(ends))

    def spans(self, text: str) -> Iterator[tuple[int, int | None, int | None]]:
        ids = self._one(text)
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
                head = self._one(text[:place])
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
        no_more, alone = self._one(text[: place + 1]), self._one(text[place])
        return np.array_equal(no_more, head) and np.array_equal(alone[-1:], head[-1:])

    def _piece(self, token: int) -> bytes:
        """Return what a token stands for, special ones as they are written."""
        data = ctypes.create_string_buffer(64)
        n = c_api.llama_token_to_piece(self._vocab, token, data, len(data), 0, True)
        if n < 0:  # -n is the room it wanted
            data = ctypes.create_string_buffer(-n)
            n = c_api.llama_token_to_piece(self._vocab, token, data, len(data), 0, True)
        return data.raw[:n]
