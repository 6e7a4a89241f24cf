"""The names of pre-tokenizers that llama.cpp knows (llama-vocab.cpp, `tokenizer_pre ==`), and what they may choke on.

python -m tests.text.pre_tokenizers N      # tries runs of N of each character on each, in this process
"""

import sys
import tempfile
from pathlib import Path

from embellama.config import EngineConfig
from embellama.errors import InvalidText
from embellama.gguf.weights import Weights
from embellama.text.tokenizer import Tokenizer
from tests.tiny import write_qwen2

_NAMES = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx deepseek-coder
deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4
gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2
hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano
joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0
minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe
seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka
viking whitespace youtu
"""
PRE_TOKENIZERS = _NAMES.split()

# A character or two of each class that a pre-tokenizer tells apart.
RUNS = {
    "letters": "a",
    "capitals": "A",
    "both": "aA",
    "ideographs": "漢",
    "hangul": "한",
    "thai": "ก",
    "marks": "\u0301",
    "spaces": " ",
    "tabs": "\t",
    "newlines": "\n",
    "crlf": "\r\n",
    "spaces and newlines": " \n",
    "nbsp": "\u00a0",
    "dots": ".",
    "brackets": "(",
    "bars": "|",
    "contractions": "'s",
    "emoji": "😀",
    "control": "\x01",
    "digits": "1",
    "arabic digits": "٣",
    "unassigned": "\u0378",
    "words": "a ",
    "special tokens": "<|im_start|>",
}


def tokenizer_of(pre: str, folder: Path) -> Tokenizer:
    """Make a tokenizer of a tiny vocabulary with this pre-tokenizer."""
    path = write_qwen2(folder / f"{pre}.gguf", pre=pre)
    return Tokenizer(Weights(EngineConfig(model_path=str(path)).checked(), vocab_only=True))


def main(n: int) -> None:
    """Try all of them, both ways: into token ids, and up to a thousand characters into pieces with their places."""
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE_TOKENIZERS:
            tokenizer = tokenizer_of(pre, Path(folder))
            for name, characters in RUNS.items():
                text = (characters * n)[:n]
                try:
                    ids = tokenizer.bare([text])[0]
                    if n <= 1000:
                        pieces = tokenizer.pieces(text, special=False)
                        assert [piece.id for piece in pieces] == ids.tolist(), (pre, name)
                except InvalidText as error:
                    print(f"{pre}, {name}: {error}")
    print("all of them were tried")


if __name__ == "__main__":
    main(int(sys.argv[1]))
