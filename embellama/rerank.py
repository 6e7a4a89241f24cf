"""Query and document as a reranker reads them: one text.

query, documents ── PairFormat.encode ──► token ids of each pair ──► EmbeddingModel.encode, pooling rank ──► scores

The format is the file's own template where it has one (`tokenizer.chat_template.rerank`, with ``{query}`` and
``{document}``: Qwen3-Reranker), and otherwise Hugging Face's for a pair: BERT's ``[CLS] q [SEP] d [SEP]``, RoBERTa's
``<s> q </s></s> d </s>``.
"""

from collections.abc import Sequence

import numpy as np

from embellama.batch import Tokens
from embellama.errors import EmptyInput, InputError, TextTooLong
from embellama.llama import c_api
from embellama.tokenizer import Tokenizer, Truncate
from embellama.weights import Weights

TEMPLATE = "tokenizer.chat_template.rerank"


class PairFormat:
    """Writes pairs for one model."""

    def __init__(self, weights: Weights, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._template: str | None = weights.header.values.get(TEMPLATE)
        between = tokenizer.last
        if len(between) and c_api.llama_vocab_get_text(weights.vocab, int(between[0])) == b"</s>":
            between = np.concatenate((between, between))  # RoBERTa and its kin
        self._between = between

    def encode(self, query: str, documents: Sequence[str], truncate: Truncate = "none") -> list[Tokens]:
        """Tokenise the pair of the query and each document.

        Args:
            query: The query; never cut.
            documents: The documents.
            truncate: What to do with a pair that is too long, as `Tokenizer.encode` has it: ``end`` and ``start`` say
                what the document loses.

        Returns:
            Token ids of each pair, ``(n,) int32``, special tokens included.

        Raises:
            InputError: `truncate` is wrong, or the query leaves no room for a document.
            InvalidText: A document is not a `str`, or holds half of a surrogate pair.
            EmptyInput: A document is empty.
            TextTooLong: A pair has too many tokens and `truncate` is ``none``; `index` is the document's.
        """
        tokenizer = self._tokenizer
        limit = tokenizer.limit_for(truncate)
        before, after = self._around(query)
        room = limit - len(before) - len(after)
        if room < 1:
            raise InputError(
                f"the query and the special tokens take {len(before) + len(after)} tokens; of {limit} none is left for "
                "a document"
            )
        pairs = []
        for index, ids in enumerate(tokenizer.bare(documents)):
            if len(ids) == 0:
                raise EmptyInput(index)
            if len(ids) > room:
                if truncate == "none":
                    raise TextTooLong(index, len(before) + len(ids) + len(after), limit)
                ids = ids[-room:] if truncate == "start" else ids[:room]
            pairs.append(np.concatenate((before, ids, after)))
        return pairs

    def _around(self, query: str) -> tuple[Tokens, Tokens]:
        """Return what comes before a document and what after it."""
        tokenizer = self._tokenizer
        if self._template is None:
            [ids] = tokenizer.bare([query])
            return np.concatenate((tokenizer.first, ids, self._between)), tokenizer.last
        # A template ends its parts with special tokens or line ends, where no token of the document can reach over.
        before, _, after = self._template.partition("{document}")
        parts = [part.replace("{query}", query) for part in (before, after)]
        empty = np.empty(0, np.int32)
        ids_before, ids_after = (tokenizer.bare([part])[0] if part else empty for part in parts)
        return ids_before, ids_after
