"""Versions of prompts: whose content a hash is, what names mean, and which files say two things at once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama.errors import ConfigError, PromptError
from embellama.text.prompt import Prompt, identities
from embellama.text.prompts import Prompts
from embellama.text.prompts_file import read_models

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
literals = texts.map(lambda text: text.replace("{", "{{").replace("}", "}}"))
bases = st.text("abcq", min_size=1, max_size=2)
versions = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,3}", fullmatch=True)


@st.composite
def contents(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """Draw a template and its defaults."""
    fields = draw(st.lists(st.sampled_from(["task", "lang"]), unique=True))
    template = draw(literals) + "".join(f"{{{field}}}" for field in fields) + "{text}" + draw(literals)
    return template, {field: draw(texts) for field in fields if draw(st.booleans())}


@given(one=contents(), other=contents())
def test_hashes_are_equal_where_contents_are_and_as_documented(
    one: tuple[str, dict[str, str]], other: tuple[str, dict[str, str]]
) -> None:
    first, second = (Prompt("p@1", *content) for content in (one, other))
    assert (first.sha256 == second.sha256) is (one == other)
    backwards = dict(reversed(one[1].items()))
    assert Prompt("another", one[0], backwards, "file.toml").sha256 == first.sha256
    content = {"defaults": one[1], "template": one[0]}
    written = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert first.sha256 == hashlib.sha256(written.encode()).hexdigest()


@given(name=texts | st.from_regex(r"[^@]*@?[^@]*@?[^@]*", fullmatch=True))
def test_any_name_is_a_name_a_version_or_an_error_and_fits_a_header(name: str) -> None:
    try:
        prompt = Prompt(name, "{text}")
    except (ConfigError, UnicodeEncodeError):
        assert "@" in name
        return
    identity = prompt.identity
    assert identity.isascii()
    assert identity.isprintable()
    assert prompt.is_version is ("@" in name)
    named, _, told = identity.partition("; sha256=")
    assert told == prompt.sha256
    assert not set(named) & set(',; "')
    assert identities([prompt, prompt]).split(", ") == [identity, identity]


@given(data=st.data(), names=st.lists(st.tuples(bases, versions), min_size=1, max_size=5, unique=True))
def test_aliases_mean_the_prompt_at_the_end_of_their_way(data: st.DataObject, names: list[tuple[str, str]]) -> None:
    own = [Prompt(f"{base}@{version}", f"{base} {version}: {{text}}") for base, version in names]
    aliases: dict[str, str] = {}
    expected: dict[str, str] = {}
    for base in dict.fromkeys(base for base, _ in names):
        its = [prompt.name for prompt in own if prompt.name.partition("@")[0] == base]
        production = f"{base}@PRODUCTION"
        aliases |= {base: production, production: data.draw(st.sampled_from(its))}
        expected |= dict.fromkeys((base, production), aliases[production])
    prompts = Prompts(own, aliases)
    for alias, name in expected.items():
        assert prompts[alias].name == name == prompts.aliases[alias]
        assert prompts.apply(alias, ["T"]) == prompts.apply(name, ["T"])
    assert [prompt.name for prompt in prompts.prompts if prompt.is_version] == [prompt.name for prompt in own]
    again = Prompts(prompts.prompts, prompts.aliases)  # as a batch keeps them
    assert {name: again[name] for name in again.names} == {name: prompts[name] for name in prompts.names}


FILE = """
[[models]]
match = ["acme*"]
aliases = { query = "query@production", "query@production" = "query@2", passage = "document" }

[models.prompts]
"query@1" = "ask: {text}"
"query@2" = { template = "{task}: {text}", task = "ask" }
"topic@1" = "topic {text}"
"""


def write(folder: Path, content: str) -> str:
    path = folder / "mine.toml"
    path.write_text(content)
    return str(path)


def test_a_plain_name_is_what_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path, FILE)
    prompts = Prompts.for_model("acme-small", file=path)
    assert prompts.names == ["document", "query@1", "query@2", "topic@1", "query", "query@production", "passage"]
    assert prompts["query"] is prompts["query@production"] is prompts["query@2"]
    assert prompts.file == path
    assert prompts["query"].identity == f"query@2; sha256={prompts['query'].sha256}"
    assert "topic" in prompts  # though nobody has said which
    with pytest.raises(PromptError, match=r"prompt 'topic' has versions: name one of topic@1$"):
        prompts["topic"]
    with pytest.raises(PromptError, match=r"prompt 'query@1' of mine\.toml has no field 'x'; it has none but text"):
        prompts.apply("query@1", ["T"], {"x": "y"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "prompts.query = '{text}'\nprompts.'query@1' = '{text}'",
            "models[0].prompts.query: there is query@1, too; a name has versions or a template, not both",
        ),
        (
            "prompts.'query@1' = '{text}'\nprompts.'query@2' = '{text}'",
            "models[0].aliases.query: missing; query has query@1, query@2, and every model has a plain query",
        ),
        ("prompts.'document@a' = '{text}'", "models[0].aliases.document: missing; document has document@a, and"),
        ("prompts.'a@b@c' = '{text}'", "models[0].prompts.a@b@c: the name 'a@b@c' is not NAME@VERSION"),
        ("prompts.'a@' = '{text}'", "models[0].prompts.a@: the name 'a@' is not NAME@VERSION"),
        ("prompts.'@1' = '{text}'", "models[0].prompts.@1: the name '@1' is not NAME@VERSION"),
        ("prompts.'a@ü' = '{text}'", "models[0].prompts.a@ü: the name 'a@ü' is not NAME@VERSION"),
        ("aliases.'q@p@x' = 'query'", "models[0].aliases.q@p@x: the name 'q@p@x' is not NAME@VERSION"),
        (
            "prompts.'a@1' = '{text}'\naliases = { 'a@new' = 'query' }",
            "models[0].aliases.a@new: 'query' is no version of 'a'",
        ),
        ("prompts.'a@1' = '{text}'\naliases = { a = 'query' }", "models[0].aliases.a: 'query' is no version of 'a'"),
        (
            "prompts.'a@1' = '{text}'\naliases = { 'a@1' = 'query' }",
            "models[0].aliases.a@1: a prompt has that name",
        ),
        (
            "aliases = { a = 'b', b = 'c', c = 'b' }",
            "models[0].aliases.a: it goes round in a circle: a → b → c → b",
        ),
        ("aliases = { a = 'a' }", "models[0].aliases.a: it goes round in a circle: a → a"),
        ("aliases = { a = 'b', b = 'c' }", "models[0].aliases.a: there is no prompt 'c'; there is query, document"),
    ],
)
def test_a_file_that_says_two_things_is_refused(entry: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"[[models]]\nmatch = ['a']\n{entry}\n")
    with pytest.raises(ConfigError) as caught:
        read_models(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_fields_that_are_missing_name_the_built_in_file_too() -> None:
    with pytest.raises(
        PromptError, match=r"prompt 'document' of the built-in prompts\.toml has no field 'x'; it has ti"
    ):
        Prompts.for_model("embeddinggemma").apply("document", ["T"], {"x": "y"})


def test_prompts_that_are_made_by_hand_are_checked_too() -> None:
    wrong: list[dict[str, Any]] = [{"aliases": {"a": "b"}}, {"prompts": [Prompt("query@1", "{text}")]}]
    for each in wrong:
        with pytest.raises(ConfigError):
            Prompts(**each)
