"""Texts that may crash llama.cpp's tokenizer, or keep it busy for ever: these are read in a process of their own.

llama.cpp cuts a text into words before it looks for tokens. For some vocabularies it does so in code of its own, for
others with ``std::regex``, which calls itself for each character of a word: 36,000 letters in a row overflow a stack
of 8 MB. Other steps take time that grows with the square of a text's length: 300,000 unknown characters take
SentencePiece 41 s.
"""

import re

from embellama.llama import c_api

# Values of `tokenizer.ggml.pre` whose words are found by llama.cpp's own code alone (llama-vocab.cpp, unicode.cpp). A
# name that is not here counts as std::regex's, which only costs time; `tests/text/test_hazards.py` tries all of both.
SPLIT_IN_CODE = frozenset(
    {
        *("a.x-4.0", "exaone4", "gigachat", "gpt-2", "granite-docling", "jais", "jina-de", "jina-es", "jina-v1-en"),
        *("jina-v2-code", "jina-v2-de", "jina-v2-es", "mellum", "modern-bert", "mpt", "olmo", "phi-2", "roberta-bpe"),
        *("trillion", "chatglm-bpe", "dbrx", "falcon-h1", "falcon3", "glm4", "glm5", "jina-v5-nano", "lfm2"),
        *("llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral", "smaug-bpe", "deepseek-r1-qwen", "f2llmv2"),
        *("grok-2", "hunyuan", "kormo", "laguna", "megrez", "qwen2", "solar-open", "stablelm2", "qwen35", "kimi-k2"),
        *("gemma4", "granite-embed-multi-311m", "sarvam-moe"),
    }
)

# Runs of text or of space that long are not given to std::regex here. Some patterns join the two, such as punctuation
# and the line breaks after it: so a word has 510 characters at most, 233 bytes of stack for each, and a thread of musl
# has 128 kB. The stricter, the more texts take a process's detour, of a tenth of a millisecond.
MAX_WORD_CHARACTERS = 256

# No pattern but one goes on into a second run of the same kind: that joins words over single spaces.
# Python's spaces from U+001C to U+001F are none of llama.cpp's.
_LONG_WORD = re.compile(rf"[\S\x1c-\x1f]{{{MAX_WORD_CHARACTERS},}}|\s{{{MAX_WORD_CHARACTERS},}}")
JOINS_WORDS = frozenset({"exaone-moe"})

# Longer texts are read apart, where they can be stopped. At these lengths the worst that is known take 0.2 s.
MAX_CHARACTERS = 100_000
MAX_SENTENCE_PIECE_CHARACTERS = 20_000


class Hazards:
    """Tells the texts that are hazardous to one vocabulary."""

    def __init__(self, kind: int, pre: str):
        """Take llama.cpp's `kind` of vocabulary (``LLAMA_VOCAB_TYPE_…``) and the name of its pre-tokenizer, or ""."""
        sentence_piece = kind == c_api.LLAMA_VOCAB_TYPE_SPM
        self._max_characters = MAX_SENTENCE_PIECE_CHARACTERS if sentence_piece else MAX_CHARACTERS
        self._uses_regex = kind == c_api.LLAMA_VOCAB_TYPE_BPE and pre not in SPLIT_IN_CODE
        if pre in JOINS_WORDS:
            self._max_characters = MAX_WORD_CHARACTERS

    def __contains__(self, text: str) -> bool:
        """Tell whether `text` must be read in a process of its own."""
        if len(text) > self._max_characters:
            return True
        return self._uses_regex and len(text) >= MAX_WORD_CHARACTERS and _LONG_WORD.search(text) is not None
