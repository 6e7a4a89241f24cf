"""`embellama prompts`: what it lists, shows and writes, and what is said of wrong names and fields."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from embellama.cli.main import main
from tests.conftest import ROOT

FILE = """
[[models]]
match = ["tiny"]
aliases = { query = "query@2", "query@old" = "query@1" }

[models.prompts]
"query@1" = "ask: {text}"
"query@2" = { template = "{task}\\n{lang}: {text}", task = "find" }
"""


@pytest.fixture
def flags(tiny_path: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    return ["--model-path", tiny_path, "--prompts-file", str(path)]


def prompts(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["prompts", *arguments])


def test_list_has_each_prompt_once_with_its_other_names(flags: list[str]) -> None:
    listed = json.loads(prompts("list", "--json", *flags).output)
    assert [(each["name"], each["aliases"], each["fields"]) for each in listed] == [
        ("document", [], []),
        ("query@1", ["query@old"], []),
        ("query@2", ["query"], ["task", "lang"]),
    ]
    result = prompts("list", *flags)
    head, *rows, source = result.output.splitlines()
    assert head.split() == ["prompt", "also", "fields", "sha256"]
    assert [row.split()[-1] for row in rows] == [each["sha256"][:12] for each in listed]
    assert source == f"from {flags[-1]}"


def test_show_follows_an_alias(flags: list[str]) -> None:
    shown = json.loads(prompts("show", "query", "--json", *flags).output)
    assert (shown["name"], shown["defaults"], shown["file"]) == ("query@2", {"task": "find"}, flags[-1])
    told = dict(line.split(maxsplit=1) for line in prompts("show", "query", *flags).output.splitlines())
    assert (told["name"], told["sha256"], told["needs"]) == ("query@2", shown["sha256"], "lang")
    assert told["template"] == r'"{task}\n{lang}: {text}"'


def test_render_writes_a_prompt_around_texts(flags: list[str]) -> None:
    assert (
        prompts("render", "query", "a", "b", "--field", "lang=en=x", *flags).output == "find\nen=x: a\nfind\nen=x: b\n"
    )
    lines = prompts("render", "query", "ä", "--field", "lang=e", "--field", "task=", "--json", *flags).output
    assert json.loads(lines) == "\ne: ä"
    assert prompts("render", "query@old", "a", *flags).output == "ask: a\n"
    assert prompts("render", "document", "{text}", *flags).output == "{text}\n"


def test_the_documents_commands_run(model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (ROOT / "docs" / "prompts.md").read_text()
    versions = document.partition("## Versions")[2]
    (tmp_path / "prompts.toml").write_text(versions.partition("```toml\n")[2].partition("```")[0])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "minilm.gguf").symlink_to(model_path)
    monkeypatch.chdir(tmp_path)
    commands = versions.partition("```bash\n")[2].partition("```")[0].splitlines()
    listed, shown, rendered = (prompts(*shlex.split(command)[2:]) for command in commands)
    assert [line.split()[0] for line in listed.output.splitlines()] == [
        "prompt",
        "document",
        "query@1",
        "query@2",
        "from",
    ]
    assert "query@production" in shown.output
    assert rendered.output == "find: Where is Paris?\n"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["render", "query", "a"], 1, "prompt 'query@2' of mine.toml needs the field 'lang'; it has task, lang"),
        (
            ["render", "query@1", "a", "--field", "x=1"],
            1,
            "prompt 'query@1' of mine.toml has no field 'x'; it has none",
        ),
        (["render", "query", "a", "--field", "lang"], 2, "--field is 'lang'; it must be NAME=VALUE"),
        (["render", "query", "a", "--field", "x=1", "--field", "x=2"], 2, "--field gives 'x' twice"),
        (["render", "query", "a", ""], 1, "text 1 is empty"),
        (["render", "query"], 2, "Missing argument 'TEXTS...'"),
        (["show", "query@3"], 1, "prompt 'query@3' is not one of this model's: document, query@1"),
        (["list", "--prompts-file", "none.toml"], 1, "none.toml: No such file or directory"),
        (["list", "--workers", "2"], 2, "No such option"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], status: int, says: str, flags: list[str]) -> None:
    result = prompts(arguments[0], *flags, *arguments[1:])
    assert (result.exit_code, says in result.output) == (status, True), result.output


def test_a_wrong_file_is_named_with_the_entry_and_the_field(flags: list[str]) -> None:
    Path(flags[-1]).write_text(FILE.replace("{task}", "{other}"))
    for command in (["list"], ["show", "query"], ["render", "query", "a"]):
        result = prompts(*command, *flags)
        assert result.exit_code == 1
        assert f"{flags[-1]}: models[0].prompts.query@2: template" in result.output
        assert "has no field 'task'; it has other, lang" in result.output


def test_a_model_that_no_file_knows_has_query_and_document(tiny_path: str) -> None:
    result = prompts("list", "--model-path", tiny_path)
    assert [line.split()[0] for line in result.output.splitlines()[1:3]] == ["query", "document"]
    assert result.output.endswith("no file has an entry for this model\n")
