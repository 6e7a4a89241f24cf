"""WordPiece gives the reference's ids, for every script, looked up or computed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama import EngineConfig
from embellama.gguf.weights import Weights
from embellama.text import word_piece as module
from embellama.text.word_piece import WordPiece
from tests.tiny import write_bert


@pytest.fixture(scope="module")
def word_piece(model_path: str) -> WordPiece:
    return WordPiece(Weights(EngineConfig(model_path=model_path).checked(), vocab_only=True))


@pytest.mark.model
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Written down from BertTokenizer (transformers 5.23); llama.cpp's own WordPiece gets each of these wrong.
        ("한국어", [1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008]),
        ("हिन्दी भाषा", [1339, 29877, 29863, 29861, 29878, 1330, 29876, 29873, 29876]),
        ("각", [1455, 30006, 30020]),
        ("x" * 101, [100]),
        ("a\x0bb", [11113]),
        ("a\u0903b", [100]),
    ],
)
def test_scripts_that_llama_cpp_mangles_are_whole(word_piece: WordPiece, text: str, ids: list[int]) -> None:
    [found] = word_piece([text])
    assert found.tolist() == ids


def test_a_vocabulary_with_capitals_keeps_case(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "cased.gguf", more_words=["Red"])
    cased = WordPiece(Weights(EngineConfig(model_path=str(path)), vocab_only=True))
    red, capital, unknown = (ids.tolist() for ids in cased(["red", "Red", "RED"]))
    assert red == [5]
    assert capital == [38], "the one that was added"
    assert unknown == [1]


def test_case_does_not_count_in_a_vocabulary_without_capitals(tiny_path: str) -> None:
    [red] = WordPiece(Weights(EngineConfig(model_path=tiny_path), vocab_only=True))(["RED"])
    assert red.tolist() == [5]


_SOME = [
    "[CLS]",
    "[UNK]",
    "##ing",
    "don't",
    "a" * 101,
    "\x7f",
    "\x00",
    "\t",
    "\r\n",
    "U.S.",
    "état",
    "“",
    "  ",
    "Hello",
]


_PARTS = st.sampled_from(_SOME) | st.text(st.characters(max_codepoint=127))


@pytest.mark.model
@given(texts=st.lists(st.lists(_PARTS, max_size=9), max_size=4))
@settings(max_examples=300)
def test_remembered_words_give_the_ids_of_the_whole_text(word_piece: WordPiece, texts: list[list[str]]) -> None:
    joined = ["".join(parts) for parts in texts]
    for _ in range(2):  # as learnt, and as remembered
        assert [ids.tolist() for ids in word_piece(joined)] == [
            encoding.ids for encoding in word_piece._tokenizer.encode_batch(joined, add_special_tokens=False)
        ]


@pytest.mark.model
def test_words_are_forgotten_before_they_take_too_much_memory(
    word_piece: WordPiece, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_WORDS", 10)
    before = [ids.tolist() for ids in word_piece(["a b c"])]
    for n in range(100):
        list(word_piece([f"word{n} b{n} " + "x" * 200]))
        assert len(word_piece._words) <= 10 or n == 0
    assert [ids.tolist() for ids in word_piece(["a b c"])] == before
