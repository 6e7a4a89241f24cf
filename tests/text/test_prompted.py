"""Prompts written around texts, through the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embellama import EmptyInput, InputError, InvalidText
from embellama.errors import ConfigError, PromptError
from tests.conftest import TinyModel
from tests.known import TEXT, assert_alike, engine_of


def test_a_prompt_is_written_around_each_text(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        np.testing.assert_allclose(engine.embed_query(None, "red"), engine.embed(None, "query: red"), atol=2e-3)
        documents = engine.embed_document(None, ["red", "blue"])
        assert_alike(documents, engine.embed_batch(None, ["passage: red", "passage: blue"]))
        assert_alike(engine.embed_document(None, "red"), documents[0])
        assert_alike(engine.embed(None, "red", prompt="passage"), documents[0])
        assert_alike(engine.embed_query(None, "red", prompt="document"), documents[0])
        # Its tokens are the text's, and count.
        assert engine.embed_tokens(None, "red", prompt="query").shape == engine.embed_tokens(None, "query: red").shape
        n_tokens = engine.encode(None, ["red"], prompt="query").n_tokens
        assert n_tokens.tolist() == engine.encode(None, ["query: red"]).n_tokens.tolist()
        # A text embedded without naming one stays as it is.
        assert engine.encode(None, ["red"]).n_tokens.tolist() == [3]


async def test_awaitable_twins_write_prompts_too(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        assert_alike(await engine.aembed_query(None, "red"), engine.embed_query(None, "red"))
        assert_alike(await engine.aembed_document(None, ["red", "one"]), engine.embed_document(None, ["red", "one"]))
        assert_alike(await engine.aembed_tokens(None, "red"), engine.embed_tokens(None, "red"))
        chunks = await engine.aembed_chunks(None, TEXT, chunk_size=2)
        assert_alike(chunks.vectors, engine.embed_chunks(None, TEXT, chunk_size=2).vectors)
        ranking = await engine.arerank(None, "red", ["one", "red"], 1)
        assert [ranked.index for ranked in ranking.results] == [
            ranked.index for ranked in engine.rerank(None, "red", ["one", "red"], 1).results
        ]


def test_fields_are_put_in(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="embeddinggemma") as engine:
        got = engine.embed_document(None, "red", fields={"title": "{text} one"})
        assert_alike(got, engine.embed(None, "title: {text} one | text: red"))
        assert_alike(engine.embed_document(None, "red"), engine.embed(None, "title: none | text: red"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": "code"}, PromptError, "prompt 'code' is not one of this model's: query, document"),
        ({"prompt": "query"}, PromptError, "prompt 'query' of prompts.toml needs the field 'task'"),
        (
            {"prompt": "query", "fields": {"task": 3}},
            PromptError,
            "prompt 'query' of prompts.toml needs a str for 'task', not int",
        ),
        ({"prompt": "document", "fields": {"task": "a"}}, PromptError, "prompt 'document' has no field 'task'"),
        ({"fields": {"task": "a", "b": "c"}}, InputError, "fields are given (task, b), but no prompt to put them in"),
    ],
)
def test_a_prompt_or_field_that_is_missing_or_unknown_is_named(
    options: Any, error: type[Exception], message: str, tiny: TinyModel, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.toml"
    prompts.write_text('[[models]]\nmatch = ["tiny"]\n[models.prompts]\nquery = "{task}: {text}"\n')
    with engine_of(tiny("bert-mean"), prompts_file=str(prompts)) as engine:
        assert_alike(engine.embed_query("tiny", "red", fields={"task": "one"}), engine.embed("tiny", "one: red"))
        asked: list[Callable[[], object]] = [
            lambda: engine.embed("tiny", "red", **options),
            lambda: engine.embed("tiny", "red", window_overlap=1, **options),
            lambda: engine.embed_tokens("tiny", "red", **options),
        ]
        for ask in asked:
            with pytest.raises(error) as caught:
                ask()
            assert str(caught.value).startswith(message)


def test_errors_of_prompted_texts_name_the_caller_s(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean"), model_name="e5-base") as engine:
        with pytest.raises(EmptyInput, match="text 1 is empty"):
            engine.embed_query(None, ["red", ""])
        with pytest.raises(InvalidText, match="text 1 is int, not str"):
            engine.embed_query(None, ["red", 3])  # type: ignore[list-item]


FILE = '[[models]]\nmatch = ["tiny"]\naliases.query = "query@1"\n[models.prompts]\n"query@1" = "one {text}"\n'


def test_a_version_keeps_its_content_when_a_model_is_loaded_again(tiny: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(FILE)
    with engine_of(tiny("bert-mean"), prompts_file=str(path)) as engine:
        path.write_text(FILE.replace("one", "two"))
        with pytest.raises(ConfigError, match=r"prompt 'query@1' of 'tiny' may not change .* was [0-9a-f]{64} and is"):
            engine.reload_model("tiny")
        assert_alike(engine.embed_query(None, "red"), engine.embed(None, "one red"))
        path.write_text(FILE.replace("query@1", "query@2").replace("one", "two"))
        engine.reload_model("tiny")
        assert_alike(engine.embed_query(None, "red"), engine.embed(None, "two red"))
