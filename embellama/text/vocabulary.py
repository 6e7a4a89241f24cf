"""The interface of a vocabulary: one text to its own token ids and back, without special tokens around them.

Two classes have it: `WordPiece` for BERT and its kin, `LlamaVocabulary` for all others. `Tokenizer` chooses one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from embellama.batch import Tokens


class Vocabulary(Protocol):
    """Turns texts into token ids, without special tokens around them."""

    def __call__(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Give the ids of each text in order, ``(n_tokens,) int32``."""

    def within(self, text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Give the first token and the one after the last of each part of a text; parts are in characters."""

    def spans(self, text: str) -> Iterator[tuple[int, int | None, int | None]]:
        """Give each token with its first character and the one after its last, if they are known."""

    def text(self, id: int) -> str:
        """Return how the vocabulary writes a token."""

    def decode(self, ids: Sequence[int], special: bool) -> str:
        """Return the text of token ids, special tokens written out only with `special`."""
