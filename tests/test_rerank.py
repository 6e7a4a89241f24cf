"""Documents in the order of their scores: a reranker's on pairs in its own format, or the cosine."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embellama import (
    EmbeddingEngine,
    EmbeddingFailed,
    EmptyInput,
    EngineConfig,
    InputError,
    InvalidText,
    ModelError,
    ModelLoadError,
    TextTooLong,
)
from embellama.gguf.weights import Weights
from embellama.jobs import Jobs
from embellama.results import Ranking
from tests.conftest import Reference, TinyModel
from tests.forward import pooled, score
from tests.forward.model import Model
from tests.tiny import write_qwen3_reranker

# As llama.cpp's converter writes it, without the words that a tiny vocabulary would spell out.
TEMPLATE = "<|im_start|>a red\nb: {query}\nc: {document}<|im_end|>\n<|im_start|>z\n"

# What each reranker reads for the query "red two": before "blue one green", the document's own, and after it.
PAIRS = {
    "bert-reranker": (["[CLS]", "▁red", "▁two", "[SEP]"], ["▁blue", "▁one", "▁green"], ["[SEP]"]),
    "jina-v2-reranker": (["[CLS]", "▁red", "▁two", "[SEP]"], ["▁blue", "▁one", "▁green"], ["[SEP]"]),
    "xlm-roberta-reranker": (["<s>", "▁red", "▁two", "</s>", "</s>"], ["▁blue", "▁one", "▁green"], ["</s>"]),
    "modern-bert-reranker": (["[CLS]", "red", "Ġtwo", "[SEP]"], ["blue", "Ġone", "Ġgreen"], ["[SEP]"]),
    "template": (
        ["<|im_start|>", "a", "Ġred", "Ċ", "b", ":", "Ġred", "Ġtwo", "Ċ", "c", ":"],
        ["Ġblue", "Ġone", "Ġgreen"],
        ["<|im_end|>", "Ċ", "<|im_start|>", "z", "Ċ"],
    ),
}
QUERY, DOCUMENT = "red two", "blue one green"
NAMES = list(PAIRS)


@pytest.fixture(scope="session")
def reranker(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return the path of a tiny reranker; "template" is a Qwen3-Reranker's with `TEMPLATE`."""
    template = write_qwen3_reranker(tmp_path_factory.mktemp("template") / "template.gguf", template=TEMPLATE)
    return lambda name: template if name == "template" else tiny(name)


def engine_of(path: Path | str, **settings: Any) -> EmbeddingEngine:
    settings = {"model_name": "tiny", "num_workers": 1, "n_threads": 1, **settings}
    return EmbeddingEngine(EngineConfig(model_path=str(path), **settings))


@cache
def jobs_of(path: Path, **settings: Any) -> Jobs:
    config = EngineConfig(model_path=str(path), **settings).checked()
    return Jobs(config, Weights(config, vocab_only=True))


def ids_of(path: Path, pieces: list[str]) -> list[int]:
    vocabulary = Model(path).get("tokenizer.ggml.tokens")
    return [vocabulary.index(piece) for piece in pieces]


def scores_of(ranking: Ranking) -> dict[int, float]:
    return {ranked.index: ranked.relevance_score for ranked in ranking.results}


# Pairs


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_written_in_the_models_format(name: str, reranker: TinyModel) -> None:
    before, document, after = PAIRS[name]
    call = jobs_of(reranker(name)).rerank(QUERY, [DOCUMENT])
    assert call.tokens[0].tolist() == ids_of(reranker(name), [*before, *document, *after])


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_reference_head(name: str, reranker: TinyModel) -> None:
    path = reranker(name)
    before, document, after = PAIRS[name]
    red = document[0].replace("blue", "red")
    expected = [score(path, ids_of(path, [*before, *pieces, *after]))[0] for pieces in (document, [red])]
    with engine_of(path) as engine:
        ranking = engine.rerank("tiny", QUERY, [DOCUMENT, "red"])
    assert ranking.method == "cross-encoder"
    assert scores_of(ranking) == pytest.approx(dict(enumerate(expected)), abs=0.005)
    assert ranking.results[0].index == int(np.argmax(expected))
    assert ranking.n_tokens == 2 * len(before) + 4 + 2 * len(after)
    assert ranking.n_cut.tolist() == [0, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("truncate", "kept"), [("end", slice(0, 1)), ("start", slice(2, 3)), ("number", slice(0, 1))])
def test_only_the_document_is_cut(name: str, truncate: Any, kept: slice, reranker: TinyModel) -> None:
    path = reranker(name)
    before, document, after = PAIRS[name]
    n = len(before) + 1 + len(after)
    # A number of tokens cuts the end.
    settings, truncate = ({}, n) if truncate == "number" else ({"n_ctx": n}, truncate)
    with engine_of(path, **settings) as engine:
        ranking = engine.rerank("tiny", QUERY, [DOCUMENT], truncate=truncate)
    expected = score(path, ids_of(path, [*before, *document[kept], *after]))[0]
    assert scores_of(ranking) == pytest.approx({0: expected}, abs=0.005)
    assert (ranking.n_tokens, ranking.n_cut.tolist()) == (n, [2])


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_that_is_too_long_is_named(name: str, reranker: TinyModel) -> None:
    n = sum(map(len, PAIRS[name]))
    jobs = jobs_of(reranker(name), n_ctx=n)
    assert len(jobs.rerank(QUERY, [DOCUMENT]).tokens[0]) == n
    with pytest.raises(TextTooLong) as caught:
        jobs.rerank(QUERY, [DOCUMENT, DOCUMENT + " a b"])
    assert str(caught.value) == f"text 1 has {n + 2} tokens; the limit is {n}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("truncate", ["none", "end", "start"])
def test_a_query_that_leaves_no_room_is_named(name: str, truncate: Any, reranker: TinyModel) -> None:
    before, _, after = PAIRS[name]
    n = len(before) + len(after)
    with pytest.raises(InputError) as caught:
        jobs_of(reranker(name), n_ctx=n).rerank(QUERY, [DOCUMENT], truncate=truncate)
    assert str(caught.value) == (
        f"the query and what the model wants around it take {n} tokens; of {n} none is left for a document"
    )


words = st.lists(st.sampled_from(["red", "blue", "one", "a", "?", "語"]), min_size=1, max_size=5)


@pytest.mark.parametrize("name", NAMES)
@given(query=words, document=words, start=st.booleans(), data=st.data())
def test_a_cut_pair_is_the_whole_one_but_for_some_of_the_document(
    name: str, query: list[str], document: list[str], start: bool, data: st.DataObject, reranker: TinyModel
) -> None:
    n_cut = data.draw(st.integers(0, len(document) - 1))
    texts = (" ".join(query), [" ".join(document)])
    whole = jobs_of(reranker(name)).rerank(*texts).tokens[0].tolist()
    cut = jobs_of(reranker(name), n_ctx=len(whole) - n_cut).rerank(*texts, truncate="start" if start else "end")
    assert cut.tokens[0].tolist() in [whole[:i] + whole[i + n_cut :] for i in range(len(whole) - n_cut)]
    n_after = len(PAIRS[name][2])
    if start or not n_cut:
        assert cut.tokens[0].tolist()[-n_after - 1 :] == whole[-n_after - 1 :]
    else:
        assert cut.tokens[0].tolist()[-n_after:] == whole[-n_after:]


def test_braces_in_a_query_or_document_are_text(reranker: TinyModel) -> None:
    path = reranker("template")
    for query, document in (("{document}", "{query}"), ("{query}", "{document}"), ("{query} {document}", "a")):
        before, after = TEMPLATE.split("{query}")
        written = before + query + after.split("{document}")[0] + document + after.split("{document}")[1]
        [expected] = jobs_of(path).tokenizer.bare([written])
        assert jobs_of(path).rerank(query, [document]).tokens[0].tolist() == expected.tolist()


@pytest.mark.parametrize("template", ["{query} a", "a {document}", "a", "{query} {document} {document}"])
def test_a_template_that_is_no_pairs_is_refused(template: str, tmp_path: Path) -> None:
    path = write_qwen3_reranker(tmp_path / "wrong.gguf", template=template)
    with pytest.raises(
        ModelLoadError, match=r"its tokenizer\.chat_template\.rerank must have \{(query|document)\} once"
    ):
        engine_of(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_reranker_gives_no_vectors(name: str, reranker: TinyModel) -> None:
    with engine_of(reranker(name)) as engine:
        asked: list[Callable[[], object]] = [
            lambda: engine.embed("tiny", "red"),
            lambda: engine.embed("tiny", "red", window_overlap=1),
            lambda: engine.embed_query("tiny", "red"),
            lambda: engine.embed_tokens("tiny", "red"),
            lambda: engine.embed_chunks("tiny", "red", chunk_size=1),
        ]
        for ask in asked:
            with pytest.raises(InputError) as caught:
                ask()
            assert str(caught.value) == "model 'tiny' is a reranker, which scores pairs of texts: call rerank"


# Rankings


@pytest.mark.parametrize("name", ["bert-reranker", "template", "bert-mean"])
def test_results_are_ordered_and_counted(name: str, reranker: TinyModel) -> None:
    documents = ["red", "blue one", "a b c", "red two", "blue one", "z"]
    with engine_of(reranker(name), max_batch_size=2) as engine:
        ranking = engine.rerank("tiny", QUERY, (document for document in documents))
        for top_n in (1, 3, 6, 100):
            first = engine.rerank("tiny", QUERY, documents, top_n)
            assert [ranked.index for ranked in first.results] == [ranked.index for ranked in ranking.results][:top_n]
            assert first.n_tokens == ranking.n_tokens
        assert engine.rerank("tiny", QUERY, []).results == []
    scores = [ranked.relevance_score for ranked in ranking.results]
    assert scores == sorted(scores, reverse=True)
    assert sorted(scores_of(ranking)) == list(range(6))


@given(
    scores=st.lists(st.sampled_from([-1.5, 0.0, 0.25, 7.0]) | st.floats(width=32, allow_nan=False)),
    top_n=st.none() | st.integers(1, 12),
)
def test_the_best_scores_come_first_and_equal_ones_in_the_order_given(
    scores: list[float], top_n: int | None, reranker: TinyModel
) -> None:
    call = jobs_of(reranker("bert-reranker")).rerank("red", ["blue"] * len(scores), top_n=top_n)
    ranking = call.finish(np.array(scores, np.float32).reshape(-1, 1))
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_n]  # stable
    assert [(ranked.index, ranked.relevance_score) for ranked in ranking.results] == [(i, scores[i]) for i in expected]


# Cosine


@pytest.mark.parametrize("normalization", ["l2", "l1", "none"])
def test_an_embedding_model_ranks_by_cosine_and_says_so(normalization: str, tiny: TinyModel) -> None:
    path = tiny("bert-mean")
    documents = [["▁blue", "▁one"], ["▁red", "▁two"], ["▁three"]]
    query, *rows = (
        pooled(path, ids_of(path, ["[CLS]", *pieces, "[SEP]"])) for pieces in (["▁red", "▁two"], *documents)
    )
    expected = {i: cosine(query, row) for i, row in enumerate(rows)}
    with engine_of(path, normalization=normalization) as engine:
        ranking = engine.rerank("tiny", "red two", ["blue one", "red two", "three"])
    assert ranking.method == "cosine"
    assert scores_of(ranking) == pytest.approx(expected, abs=0.005)
    assert [ranked.index for ranked in ranking.results] == sorted(expected, key=lambda i: -expected[i])
    assert -1 <= ranking.results[-1].relevance_score <= ranking.results[0].relevance_score <= 1
    assert (ranking.n_tokens, ranking.n_cut.tolist()) == (4 + 4 + 4 + 3, [0, 0, 0])


def test_cosine_is_of_the_prompted_texts(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        query, document = engine.embed_batch(None, ["query: red", "passage: one"])
        assert scores_of(engine.rerank(None, "red", ["one"])) == pytest.approx({0: query @ document}, abs=0.005)


def test_cosine_of_cut_documents_tells_what_was_cut(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), n_ctx=5) as engine:
        ranking = engine.rerank("tiny", "red", ["red blue one two", "red"], truncate="start")
        alike = engine.embed("tiny", "red") @ engine.embed("tiny", "blue one two")
        assert ranking.n_cut.tolist() == [1, 0]
        assert scores_of(ranking)[0] == pytest.approx(alike, abs=0.005)


@pytest.mark.model
def test_cosine_orders_as_the_reference_vectors_do(engine: EmbeddingEngine, reference: Reference) -> None:
    query = reference.texts.index("How do I reset my password?")
    others = [i for i in range(len(reference.texts)) if i != query]
    ranking = engine.rerank("minilm", reference.texts[query], [reference.texts[i] for i in others])
    expected = reference.vectors[others] @ reference.vectors[query]
    order = [ranked.index for ranked in ranking.results]
    assert scores_of(ranking) == pytest.approx(dict(enumerate(expected.tolist())), abs=0.01)
    assert order[0] == int(expected.argmax())
    assert (np.diff(expected[order]) < 0.02).all()


# What is wrong


@pytest.mark.parametrize("name", ["bert-mean", "bert-reranker", "template"])
@pytest.mark.parametrize(
    ("query", "documents", "options", "error", "message"),
    [
        ("", ["red"], {}, InputError, "the query is empty"),
        (None, ["red"], {}, InputError, "the query is NoneType, not str"),
        (["red"], ["red"], {}, InputError, "the query is list, not str"),
        ("a\ud800", ["red"], {}, InputError, "the query is not valid Unicode: lone surrogate at character 1"),
        ("red", "blue", {}, InputError, "documents is one str, not a list of them"),
        ("red", ["blue", ""], {}, EmptyInput, "text 1 is empty"),
        ("red", ["blue", 3], {}, InvalidText, "text 1 is int, not str"),
        ("red", ["blue", "\udc00"], {}, InvalidText, "text 1 is not valid Unicode"),
        ("red", ["red"], {"top_n": 0}, InputError, "top_n is 0; it must be at least 1"),
        ("red", ["red"], {"top_n": -1}, InputError, "top_n is -1; it must be at least 1"),
        ("red", ["blue", "red " * 99], {}, TextTooLong, "text 1 has 1"),
        ("red", ["red"], {"truncate": "both"}, InputError, "truncate is 'both'; it must be none, end, start or"),
    ],
)
def test_a_wrong_query_or_document_is_named(
    name: str,
    query: Any,
    documents: Any,
    options: Any,
    error: type[Exception],
    message: str,
    reranker: TinyModel,
) -> None:
    with engine_of(reranker(name)) as engine, pytest.raises(error) as caught:
        engine.rerank("tiny", query, documents, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("query", "message"),
    [("red " * 63, "the query has 65 tokens; the limit is 64"), ("red " * 9999, "the query has more than")],
)
def test_a_query_that_is_too_long_is_named(query: str, message: str, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        with pytest.raises(InputError) as caught:
            engine.rerank("tiny", query, ["red"])
        assert str(caught.value).startswith(message)
        assert engine.rerank("tiny", query, ["red"], truncate="end").n_tokens == 64 + 3


def test_what_the_model_fails_on_is_named(reranker: TinyModel) -> None:
    for name in ("bert-mean", "bert-reranker", "template"):
        with engine_of(reranker(name)) as engine:
            with pytest.raises(EmbeddingFailed, match="the model failed on text 1") as caught:
                engine.rerank("tiny", "red", ["red", "red poison", "blue"])
            assert caught.value.index == 1
    with engine_of(reranker("bert-mean")) as engine:
        with pytest.raises(ModelError) as failed:
            engine.rerank("tiny", "poison", ["red", "blue"])
        assert str(failed.value) == "the model failed on the query: its vector is not finite"


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
