"""`Chunker`: cut documents into chunks of a model's tokens, between words.

a document's record ── words, counted in tokens ──► chunks ──► a record each
                                                    └─ late ──► windows of chunks, as long as the model reads

A word is what stands between spaces. Where one has more tokens than a chunk may have, as whole sentences do in scripts
without spaces, it is cut between characters.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from embellama.bulk.documents.records import chunk_record
from embellama.bulk.rows import LateChunk, Read, Record, RowError
from embellama.errors import InvalidText
from embellama.text.tokenizer import Tokenizer

# Words that are tokenized at once. Fewer take longer; more hold memory.
WORDS_AT_ONCE = 4096

# What joins emoji, and what changes one before it.
JOINER, SKIN_TONES = "\u200d", "🏻🏼🏽🏾🏿"

_WORD = re.compile(r"\S+")

Span = tuple[int, int]


class Word(NamedTuple):
    """A word of a text, or a part of a long one.

    start: Its first character.
    stop: The character after its last.
    n_tokens: Its tokens, when it is tokenized alone.
    """

    start: int
    stop: int
    n_tokens: int


class Chunker:
    """Cuts texts into chunks."""

    def __init__(self, tokenizer: Tokenizer, n_tokens: int, overlap: int, *, late: bool):
        """Prepare to cut.

        Args:
            tokenizer: The model's.
            n_tokens: Most tokens in a chunk, special ones left out.
            overlap: Most tokens at a chunk's beginning that are also the end of the one before.
            late: Whether chunks are to be computed with the text around them.
        """
        self._tokenizer, self._n_tokens, self._overlap, self._late = tokenizer, n_tokens, overlap, late
        # In some vocabularies a word has other tokens after a space.
        words = "the cat sat on the mat"
        counts = [sum(map(len, tokenizer.bare(f"{space}{word}" for word in words.split()))) for space in ("", " ")]
        self._n_before = int(abs(counts[1] - self._count(words)) < abs(counts[0] - self._count(words)))

    def reads(self, records: Iterable[tuple[Record, int]], at: int, chunk: int) -> Iterator[Read]:
        """Cut the texts of records.

        Args:
            records: Documents' records, each with the place after it.
            at: The place of the first one.
            chunk: So many chunks of the first one are left out.
        """
        for record, after in records:
            reads = self._cut(record, at, after)
            yield from reads[chunk:]
            at, chunk = after, 0

    def _cut(self, record: Record, at: int, after: int) -> list[Read]:
        """Return the chunks of one record, each with the place after it."""
        if isinstance(record, RowError):
            return [Read(record, after)]
        text = record["text"]
        try:
            spans = list(self.spans(text))
            late = self._windows(text, spans) if self._late else [None] * len(spans)
        except InvalidText as error:
            wrong = RowError(f"{record['id']} cannot be cut into chunks: a word {error.reason}")
            return [Read(wrong.of({name: value for name, value in record.items() if name != "text"}), after)]
        if not spans:
            return [Read(record, after)]
        reads = [
            Read(chunk_record({**record}, number, text[start:stop]), at, number, window)
            for number, ((start, stop), window) in enumerate(zip(spans, late, strict=True), 1)
        ]
        reads[-1] = reads[-1]._replace(at=after, chunk=0)
        return reads

    def spans(self, text: str) -> Iterator[Span]:
        """Find the chunks of a text; none if there are only spaces.

        Yields:
            A chunk's first character, and the one after its last.

        Raises:
            InvalidText: A word cannot be tokenized.
        """
        held: list[Word] = []
        n_new = n_held = 0  # words that no chunk has yet, and the tokens of all words
        for word in itertools.chain(self._words(text), [None]):
            while n_new if word is None else held and n_held + word.n_tokens > self._n_tokens:
                n_fit = self._n_fitting(text, held) if n_new else 0
                if n_fit <= len(held) - n_new:
                    held = held[1:]  # the overlap leaves no room for more
                else:
                    yield held[0].start, held[n_fit - 1].stop
                    n_new = len(held) - n_fit
                    held = self._overlapping(held[:n_fit]) + held[n_fit:]
                n_held = sum(each.n_tokens for each in held)
            if word is not None:
                held.append(word)
                n_new += 1
                n_held += word.n_tokens

    def _n_fitting(self, text: str, words: Sequence[Word]) -> int:
        """Return how many words fit a chunk: at least one, and nearly always all, as their tokens were counted."""
        n = len(words)
        while n > 1 and self._count(text[words[0].start : words[n - 1].stop]) > self._n_tokens:
            n -= 1
        return n

    def _overlapping(self, words: Sequence[Word]) -> list[Word]:
        """Return the last words of a chunk, with which the next one begins; never all of them."""
        n_tokens, first = 0, len(words)
        while first > 1 and n_tokens + words[first - 1].n_tokens <= self._overlap:
            first -= 1
            n_tokens += words[first].n_tokens
        return list(words[first:])

    def _words(self, text: str) -> Iterator[Word]:
        """Count the tokens of words, and cut those that have too many."""
        found = ((match.start(), match.end()) for match in _WORD.finditer(text))
        while spans := list(itertools.islice(found, WORDS_AT_ONCE)):
            ids = self._tokenizer.bare(text[max(start - self._n_before, 0) : stop] for start, stop in spans)
            for (start, stop), n_tokens in zip(spans, map(len, ids), strict=True):
                if n_tokens <= self._n_tokens:
                    yield Word(start, stop, n_tokens)
                else:
                    yield from self._cut_word(text, start, stop, (stop - start) / n_tokens)

    def _cut_word(self, text: str, start: int, stop: int, characters: float) -> Iterator[Word]:
        """Cut a word of so many characters a token into parts that fit a chunk, or of one character."""
        step = max(1, int(self._n_tokens * characters / 16))
        while start < stop:
            end = self._end_of_part(text, start, min(stop, start + 32 * step), step)
            end = _between_characters(text, start, end, stop)
            yield Word(start, end, self._count(text[start:end]))
            start = end

    def _end_of_part(self, text: str, start: int, stop: int, step: int) -> int:
        """Return a place up to which a text fits a chunk, the last one but for `step` characters; or the first."""
        if self._count(text[start:stop]) <= self._n_tokens:
            return stop
        end, over = start + 1, stop
        while over - end > step:
            middle = (end + over) // 2
            if self._count(text[start:middle]) <= self._n_tokens:
                end = middle
            else:
                over = middle
        return end

    def _windows(self, text: str, spans: Sequence[Span]) -> list[LateChunk]:
        """Return each chunk in a window of chunks that the model reads as a whole."""
        room = self._tokenizer.limit - self._tokenizer.n_special
        windows: list[LateChunk] = []
        while len(windows) < len(spans):
            first = len(windows)
            start, stop = spans[first]
            while len(windows) < len(spans):
                end = spans[len(windows)][1]
                if len(windows) > first and self._count(text[start:end]) > room:
                    break
                stop = end
                windows.append(LateChunk("", *spans[len(windows)]))
            window = text[start:stop]
            windows[first:] = [LateChunk(window, each.start - start, each.stop - start) for each in windows[first:]]
        return windows

    def _count(self, text: str) -> int:
        return len(self._tokenizer.bare([text])[0])


def _between_characters(text: str, start: int, end: int, stop: int) -> int:
    """Return the last place up to `end` that is not inside of a character, or the one behind the first character."""
    places = (*range(end, start, -1), *range(end + 1, stop))
    return next((place for place in places if place == stop or not _goes_on(text, place)), stop)


def _goes_on(text: str, place: int) -> bool:
    """Tell whether the character at a place belongs to the one before it, as an accent or a part of an emoji does."""
    before, after = text[place - 1], text[place]
    return unicodedata.category(after)[0] == "M" or JOINER in (before, after) or after in SKIN_TONES
