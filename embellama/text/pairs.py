"""Join a query and each document into the one text that a reranker reads.

query, documents ── PairFormat.encode ──► token ids of each pair ──► EmbeddingModel.encode, pooling rank ──► scores

The format is the file's own template where it has one (`tokenizer.chat_template.rerank`, with ``{query}`` and
``{document}``: Qwen3-Reranker), and otherwise Hugging Face's for a pair: BERT's ``[CLS] q [SEP] d [SEP]``, RoBERTa's
``<s> q </s></s> d </s>``.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from embellama.batch import Tokens
from embellama.errors import EmptyInput, InputError, InvalidText, ModelLoadError, TextTooLong
from embellama.gguf.weights import Weights
from embellama.llama import c_api
from embellama.options import Truncate
from embellama.text.tokenizer import Tokenized, Tokenizer, checked

TEMPLATE = "tokenizer.chat_template.rerank"


class PairFormat:
    """Writes pairs of query and document for one model, in its own format."""

    def __init__(self, weights: Weights, tokenizer: Tokenizer):
        """Read the format of a model; raise `ModelLoadError` if it is a reranker whose template is no pair's."""
        self._tokenizer = tokenizer
        self._template: str | None = weights.header.values.get(TEMPLATE)
        if self._template is not None and weights.pooling == "rank":
            for field in ("{query}", "{document}"):
                if self._template.count(field) != 1:
                    raise ModelLoadError(weights.path, f"its {TEMPLATE} must have {field} once: {self._template!r}")
        between = tokenizer.last
        if len(between) and c_api.llama_vocab_get_text(weights.vocab, int(between[0])) == b"</s>":
            between = np.concatenate((between, between))  # RoBERTa and its kin
        self._between = between

    def encode(self, query: str, documents: Sequence[str], truncate: Truncate = "none") -> Tokenized:
        """Tokenize the pair of the query and each document.

        Args:
            query: The query; never cut.
            documents: The documents.
            truncate: What to do with a pair that is too long, as `Tokenizer.encode` has it: ``end`` and ``start`` say
                what the document loses.

        Returns:
            Token ids of each pair, special tokens included, and how many of each document's were left out.

        Raises:
            InputError: `truncate` is wrong, or the query leaves no room for a document.
            InvalidText: A document is not a `str`, holds half of a surrogate pair, or cannot be tokenized.
            EmptyInput: A document is empty.
            TextTooLong: A pair has too many tokens and `truncate` is ``none``; `index` is the document's.
        """
        limit = self._tokenizer.limit_for(truncate)
        with naming_the_query():
            [asked] = self._tokenizer.bare([query])
        if len(asked) > limit:  # before it is read again with each document
            raise _no_room(len(asked), limit)
        pairs: list[Tokens] = []
        n_cut = np.zeros(len(documents), np.int32)
        for index, (before, ids, after) in enumerate(self._parts(query, asked, checked(documents))):
            n_around = len(before) + len(after)
            room = limit - n_around
            if room < 1:
                raise _no_room(n_around, limit)
            if len(ids) == 0:
                raise EmptyInput(index)
            if len(ids) > room:
                if truncate == "none":
                    raise TextTooLong(index, n_around + len(ids), limit)
                n_cut[index] = len(ids) - room
                ids = ids[-room:] if truncate == "start" else ids[:room]
            pairs.append(np.concatenate((before, ids, after)))
        return Tokenized(pairs, n_cut)

    def _parts(self, query: str, asked: Tokens, documents: Sequence[str]) -> Iterator[tuple[Tokens, Tokens, Tokens]]:
        """Yield, for each document, its ids between those that come before and after it; `asked` is the query's."""
        tokenizer = self._tokenizer
        if self._template is None:
            before = np.concatenate((tokenizer.first, asked, self._between))
            for ids in tokenizer.bare(documents):
                yield before, ids, tokenizer.last
            return
        head, tail = (part.replace("{query}", query) for part in self._template.split("{document}"))
        for index, document in enumerate(documents):
            # As one text: a space before the document belongs to its first token.
            text = f"{head}{document}{tail}"
            try:
                [ids] = tokenizer.bare([text])
                [(start, end)] = tokenizer.within(text, [(len(head), len(head) + len(document))])
            except InvalidText as error:
                raise InvalidText(index, error.reason) from None
            yield ids[:start], ids[start:end], ids[end:]


def _no_room(n_tokens: int, limit: int) -> InputError:
    error = InputError(
        f"the query and what the model wants around it take {n_tokens} tokens; of {limit} none is left for a document"
    )
    error.option = "query"
    return error


@contextlib.contextmanager
def naming_the_query() -> Iterator[None]:
    """Let an error about the only text that is tokenized name the query, not a document."""
    try:
        yield
    except (EmptyInput, InvalidText, TextTooLong) as error:
        named = InputError(str(error).replace("text 0", "the query", 1))
        named.option = "query"
        raise named from None
