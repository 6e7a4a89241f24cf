"""Token ids are those of the model's own tokenizer."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama import EmptyInput, EngineConfig, InvalidToken, TextTooLong
from embellama.gguf.weights import Weights
from embellama.text import tokenizer as module
from embellama.text.tokenizer import Tokenizer, WordPiece
from tests.conftest import Reference
from tests.tiny import write_bert


@pytest.fixture(scope="module")
def minilm(model_path: str) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=model_path), vocab_only=True))


@pytest.fixture(scope="module")
def tiny(tiny_path: str) -> Tokenizer:
    return Tokenizer(Weights(EngineConfig(model_path=tiny_path), vocab_only=True))


@pytest.mark.model
def test_ids_are_those_of_hugging_face(minilm: Tokenizer, reference: Reference) -> None:
    assert [row.tolist() for row in minilm.encode(reference.texts).tokens] == reference.ids


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
def test_scripts_that_llama_cpp_mangles_are_whole(minilm: Tokenizer, text: str, ids: list[int]) -> None:
    assert minilm.encode([text]).tokens[0].tolist() == [101, *ids, 102]


@pytest.mark.model
def test_a_vocab_only_load_knows_the_limit(minilm: Tokenizer) -> None:
    assert (minilm.limit, minilm.n_vocab) == (512, 30522)


@given(text=st.text(min_size=1, max_size=40))
def test_any_unicode_has_ids_between_the_special_tokens(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode([text]).tokens[0]
    assert (ids[0], ids[-1]) == (2, 3)
    assert ids.min() >= 0
    assert ids.max() < tiny.n_vocab


def test_a_vocabulary_with_capitals_keeps_case(tmp_path: Path) -> None:
    cased = Tokenizer(Weights(EngineConfig(model_path=str(write_bert(tmp_path / "cased.gguf", more_words=["Red"])))))
    red, capital = cased.bare(["red", "Red"])
    assert (red.tolist(), capital.tolist()) == ([5], [cased.n_vocab - 1])
    assert cased.bare(["RED"])[0].tolist() == [1]


def test_case_does_not_count_without(tiny: Tokenizer) -> None:
    assert tiny.bare(["RED"])[0].tolist() == [5]


def test_special_tokens_written_out_count_as_such(tiny: Tokenizer) -> None:
    assert tiny.encode(["red [SEP] blue"]).tokens[0].tolist() == [2, 5, 3, 7, 3]


def test_ids_are_used_as_they_are(tiny: Tokenizer) -> None:
    assert [row.tolist() for row in tiny.check([[5, 6], [7]])] == [[5, 6], [7]]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[5], [5, 38]], InvalidToken, "text 1 has token id 38, which is not in this model's vocabulary (0 to 37)"),
        ([[-1]], InvalidToken, "text 0 has token id -1"),
        ([[10**30]], InvalidToken, "text 0 has token id 1000"),
        ([[5], []], EmptyInput, "text 1 is empty"),
        ([[5] * 65], TextTooLong, "text 0 has 65 tokens; the limit is 64"),
    ],
)
def test_wrong_ids_are_named(tiny: Tokenizer, ids: list[list[int]], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        tiny.check(ids)
    assert str(caught.value).startswith(message)


@pytest.fixture(scope="module")
def word_piece(model_path: str) -> WordPiece:
    return WordPiece(Weights(EngineConfig(model_path=model_path).checked(), vocab_only=True))


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
