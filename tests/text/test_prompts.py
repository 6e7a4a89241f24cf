"""Prompts: the published ones, a user's own, and what is said of a wrong one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama.errors import ConfigError, PromptError
from embellama.text.prompt import Prompt
from embellama.text.prompts import BUILT_IN, Prompts
from embellama.text.prompts_file import ModelPrompts, read_models
from tests.conftest import ROOT

# Written by hand from the model cards named in prompts.toml.
PUBLISHED = [
    ("multilingual-e5-large", "query", "query: T"),
    ("e5-small-v2.Q8_0", "document", "passage: T"),
    ("e5-base-v2", "passage", "passage: T"),
    ("multilingual-e5-small-q4_k_m", "clustering", "query: T"),
    (
        "multilingual-e5-large-instruct-f16",
        "query",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: T",
    ),
    ("Multilingual E5 Large Instruct", "document", "T"),
    ("e5-mistral-7b-instruct", "sts_query", "Instruct: Retrieve semantically similar text.\nQuery: T"),
    ("e5-mistral-7b-instruct", "bitext", "Instruct: Retrieve parallel sentences.\nQuery: T"),
    ("bge-small-en-v1.5-f16", "query", "Represent this sentence for searching relevant passages: T"),
    ("Bge Small En v1.5", "document", "T"),
    ("bge-large-zh-v1.5", "query", "为这个句子生成表示以用于检索相关文章：T"),
    ("bge-large-zh-noinstruct", "query", "T"),
    ("bge-m3-Q8_0", "query", "T"),
    (
        "bge-multilingual-gemma2",
        "query",
        "<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>T",
    ),
    ("nomic-embed-text-v1.5.Q8_0", "query", "search_query: T"),
    ("nomic-embed-text:latest", "search_document", "search_document: T"),
    ("nomic-embed-text-v1", "classification", "classification: T"),
    ("Nomic Embed Text v2 MOE", "passage", "search_document: T"),
    ("nomic-embed-text-v2-moe", "STS", "classification: T"),
    ("CodeRankEmbed-f16", "query", "Represent this query for searching relevant code: T"),
    ("mxbai-embed-large-v1", "query", "Represent this sentence for searching relevant passages: T"),
    ("mxbai-embed-large-v1-f16", "passage", "T"),
    (
        "Qwen3-Embedding-0.6B-Q8_0",
        "query",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:T",
    ),
    ("Qwen3 Embedding 8B", "document", "T"),
    ("embeddinggemma-300m", "query", "task: search result | query: T"),
    ("embeddinggemma-300M-Q8_0", "document", "title: none | text: T"),
    ("Embeddinggemma 300m", "STS", "task: sentence similarity | query: T"),
    ("embedding-gemma-300m", "code", "task: code retrieval | query: T"),
    ("embeddinggemma-300m", "question_answering", "task: question answering | query: T"),
    ("embeddinggemma-300m", "fact_checking", "task: fact checking | query: T"),
    ("jina-embeddings-v3", "retrieval.query", "Represent the query for retrieving evidence documents: T"),
    ("jina-embeddings-v3-Q4_K_M", "document", "Represent the document for retrieval: T"),
    ("jina-embeddings-v3", "text-matching", "T"),
    ("jina-embeddings-v2-base-code", "query", "T"),
    ("jina-embeddings-v4-text-retrieval-Q8_0", "retrieval.query", "Query: T"),
    ("jina-embeddings-v4-text-code", "code.passage", "Passage: T"),
    (
        "jina-code-embeddings-1.5b-Q8_0",
        "query",
        "Find the most relevant code snippet given the following query:\nT",
    ),
    ("jina-code-embeddings-0.5b", "qa.passage", "Candidate answer:\nT"),
    ("snowflake-arctic-embed-m-v1.5", "query", "Represent this sentence for searching relevant passages: T"),
    ("snowflake-arctic-embed-m-long-Q5_K_M", "document", "T"),
    ("snowflake-arctic-embed-l-v2.0-q8_0", "query", "query: T"),
    ("snowflake-arctic-embed2:568m", "query", "query: T"),
    (
        "gte-Qwen2-1.5B-instruct",
        "query",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: T",
    ),
    ("gte-modernbert-base", "query", "T"),
    ("thenlper/gte-large", "query", "T"),
    ("all-MiniLM-L6-v2", "query", "T"),
    ("all-MiniLM-L6-v2", "document", "T"),
    ("nobody-knows-it", "query", "T"),
]


@pytest.mark.parametrize(("model", "name", "expected"), PUBLISHED)
def test_published_prompts_are_built_in(model: str, name: str, expected: str) -> None:
    assert Prompts.for_model(model).apply(name, ["T"]) == [expected]


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "bge-m3", "jina-embeddings-v2-base-code", "gte-base", "x", ""])
def test_a_model_without_prompts_has_query_and_document_alone(model: str) -> None:
    assert Prompts.for_model(model).names == ["query", "document"]


@pytest.mark.parametrize("model", ["nomic-embed-code", "nomic-embed-vision-v1.5", "bge-reranker-v2-m3", "mistral-7b"])
def test_a_name_that_is_only_alike_gets_no_prompt(model: str) -> None:
    assert Prompts.for_model(model).apply("query", ["T"]) == ["T"]


def test_every_built_in_prompt_works_without_fields() -> None:
    for model in read_models(BUILT_IN):
        prompts = Prompts(model.prompts, model.aliases)
        for name in prompts.names:
            (text,) = prompts.apply(name, ["T"])
            assert "T" in text


def test_every_built_in_entry_is_reached() -> None:
    models = read_models(BUILT_IN)
    for model in models:
        for pattern in model.match:
            name = pattern.replace("*", "").replace("?", "m").strip("-")
            assert next(m for m in models if m.matches(name) or m.matches(f"x-{name}-y")) is model, pattern


def test_the_first_name_that_matches_decides() -> None:
    assert Prompts.for_model(None, "", "mine", "E5 Base v2", "bge-base-en").apply("query", ["T"]) == ["query: T"]
    assert Prompts.for_model("all-MiniLM-L6-v2", "e5-base-v2").apply("query", ["T"]) == ["T"]


def test_fields_fill_the_template_and_win_over_defaults() -> None:
    assert Prompts.for_model("embeddinggemma-300m").apply("document", ["a", "b"], {"title": "{text}"}) == [
        "title: {text} | text: a",
        "title: {text} | text: b",
    ]
    assert Prompts.for_model("Qwen3-Embedding-4B")["query"].apply("q", instruction="Find it") == (
        "Instruct: Find it\nQuery:q"
    )


def test_what_is_no_text_is_left_for_the_tokenizer_to_name() -> None:
    texts: list[Any] = ["a", "", 3, None]
    assert Prompts.for_model("e5-base-v2").apply("query", texts) == ["query: a", "", 3, None]


literals = st.text().map(lambda text: text.replace("{", "{{").replace("}", "}}"))


@given(before=literals, after=literals, text=st.text(), title=st.text())
def test_whatever_is_put_in_comes_out_unchanged(before: str, after: str, text: str, title: str) -> None:
    prompt = Prompt("p", f"{before}{{title}}|{{text}}{after}")
    start, end = (part.replace("{{", "{").replace("}}", "}") for part in (before, after))
    assert prompt.apply(text, title=title) == f"{start}{title}|{text}{end}"
    assert prompt.around({"title": title}) == (f"{start}{title}|", end)


@given(template=st.text(st.sampled_from("{}ab.[]!: ")) | st.text())
def test_any_template_is_a_prompt_or_a_config_error(template: str) -> None:
    try:
        prompt = Prompt("p", template)
    except ConfigError:
        return
    assert "T" in prompt.apply("T", **dict.fromkeys(prompt.fields, "x"))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("quary", {}, "prompt 'quary' is not one of this model's: query, document, both, passage"),
        ("both", {}, "prompt 'both' needs the field 'kind'; it has kind, title"),
        ("both", {"kind": "k", "titel": "t"}, "prompt 'both' has no field 'titel'; it has kind, title"),
        ("query", {"title": "t"}, "prompt 'query' has no field 'title'; it has none but text"),
        ("passage", {"text": "t"}, "prompt 'document' has no field 'text'; it has none but text"),
        ("both", {"kind": 3}, "prompt 'both' needs a str for 'kind', not int"),
    ],
)
def test_a_wrong_call_names_the_prompt_and_what_there_is(name: str, fields: dict[str, Any], message: str) -> None:
    both = Prompt("both", "{kind} {title} {text}", {"title": "none"})
    prompts = Prompts([Prompt("query", "q: {text}"), both], {"passage": "document"})
    with pytest.raises(PromptError) as caught:
        prompts.apply(name, ["T"], fields)
    assert str(caught.value) == message


MINE = """
[[models]]
match = ["acme-*", "My E5*"]
aliases = { passage = "document" }

[models.prompts]
question = "ask: {text}"
document = { template = "{{{topic}}} {text} ({text_language})", topic = "all", text_language = "en" }

[[models]]
match = ["bge-m3"]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def test_a_file_of_ones_own_is_asked_first(mine: Path) -> None:
    prompts = Prompts.for_model("e5-base-v2", "Acme_Small-Q8_0", file=mine)
    assert prompts.names == ["query", "document", "question", "passage"]
    assert prompts.apply("query", ["T"]) == ["T"]
    assert prompts.apply("passage", ["T"], {"topic": "x"}) == ["{x} T (en)"]
    assert Prompts.for_model("my-e5-base", file=str(mine)).apply("question", ["T"]) == ["ask: T"]
    assert Prompts.for_model("e5-base-v2", file=mine).apply("query", ["T"]) == ["query: T"]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("models = 3", "models: expected `array`, got `int`"),
        ("", "object missing required field `models`"),
        ("[[models]]\nmatch = []", "models[0].match: expected `array` of length >= 1"),
        ("[[models]]\nmatch = ['']", "models[0].match[0]: expected `str` of length >= 1"),
        ("[[models]]\nmatch = 'a'", "models[0].match: expected `array`, got `str`"),
        ("[[models]]\nprompts = {}", "models[0]: object missing required field `match`"),
        ("[[models]]\nmatch = ['a']\nprompt = {}", "models[0]: object contains unknown field `prompt`"),
        ("[[models]]\nmatch = ['a']\nprompts.q = 3", "models[0].prompts.q: expected a string, or a table of strings"),
        ("[[models]]\nmatch = ['a']\nprompts.q = { title = 'x' }", "models[0].prompts.q: the template is missing"),
        (
            "[[models]]\nmatch = ['a']\nprompts.q = { template = '{text}', title = 'x' }",
            "models[0].prompts.q: template '{text}' has no field 'title'; it has none but text",
        ),
        ("[[models]]\nmatch = ['a']\nprompts.q = { template = '{text}', n = 1 }", "models[0].prompts.q: expected a"),
        (
            "[[models]]\nmatch = ['a']\n[[models]]\nmatch = ['b']\nprompts.q = 'query: '",
            "models[1].prompts.q: template 'query: ' has {text} 0 times; it must have it once",
        ),
        (
            "[[models]]\nmatch = ['a']\nprompts.q = '{text}{text}'",
            "models[0].prompts.q: template '{text}{text}' has {te",
        ),
        (
            "[[models]]\nmatch = ['a']\nprompts.q = '{text} {'",
            "models[0].prompts.q: template '{text} {' has unpaired br",
        ),
        *(
            (f"[[models]]\nmatch = ['a']\nprompts.q = '{{text}}{bad}'", "may have only plain names in braces")
            for bad in ("{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{a b}", "{text.x}")
        ),
        (
            "[[models]]\nmatch = ['a']\naliases = { p = 'passage' }",
            "models[0].aliases.p: there is no prompt 'passage'; there is query, document",
        ),
        (
            "[[models]]\nmatch = ['a']\naliases.p = ['query']",
            "models[0].aliases.p: there is no prompt ['query']; there",
        ),
        ("[[models]]\nmatch = ['a']\naliases.query = 'document'", "models[0].aliases.query: a prompt has that name"),
        ("[[models]]\nmatch = ['a']\nprompts.'' = '{text}'", "expected `str` of length >= 1"),
        (
            "[[models]]\nmatch = ['a']\naliases.q = 'query'\nprompts.q = '{text}'",
            "models[0].aliases.q: a prompt has that name",
        ),
        ("[[models]", "not TOML: Expected ']]'"),
        ("\udcff", "not TOML: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_wrong_file_is_named_with_the_entry_and_the_field(toml: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_bytes(toml.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        Prompts.for_model("a", file=path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory"):
        Prompts.for_model("a", file=tmp_path / "none.toml")


def test_every_built_in_prompt_is_documented() -> None:
    document = (ROOT / "docs" / "prompts.md").read_text()
    table = document.partition("## Built in\n")[2].partition("\n| models |")[2]
    assert table.splitlines()[2:] == [row for model in read_models(BUILT_IN) for row in rows(model)]


def rows(model: ModelPrompts) -> list[str]:
    """What docs/prompts.md says of an entry: one row for each prompt, the entry's names in its first."""
    prompts = Prompts(model.prompts)
    told = [
        f"`{name}` | {code(prompts[name].template)} | {defaults(prompts[name])} | {other_names(model, name)} |"
        for name in prompts.names
        if model.prompts
    ]
    first, *others = told or ["none | | | |"]
    return [f"| {', '.join(f'`{pattern}`' for pattern in model.match)} | {first}", *(f"| | {row}" for row in others)]


def code(text: str) -> str:
    shown = json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|")
    return f"`{shown}`"


def defaults(prompt: Prompt) -> str:
    return ", ".join(f"`{field}`: {code(value)}" for field, value in prompt.defaults.items())


def other_names(model: ModelPrompts, name: str) -> str:
    return ", ".join(f"`{alias}`" for alias, target in model.aliases.items() if target == name)


def test_the_programs_in_the_document_run() -> None:
    document = (ROOT / "docs" / "prompts.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        exec(program, {})


def test_the_file_in_the_document_is_read(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "prompts.md").read_text()
    path = tmp_path / "example.toml"
    path.write_text(document.partition("```toml\n")[2].partition("```")[0])
    prompts = Prompts.for_model("acme-embed-large-Q8_0", file=path)
    assert prompts.apply("query", ["What is TSNE?"]) == ["Task: answer a question\nQuery: What is TSNE?"]
    assert prompts.apply("search_document", ["T"]) == ["document: T"]
