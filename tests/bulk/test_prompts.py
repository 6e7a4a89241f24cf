"""Which prompt a run's manifest names, and that a run with another one is not gone on with."""

import json
from pathlib import Path

import pytest

from embellama.bulk.manifest import Manifest
from embellama.text.prompts import Prompts
from tests.bulk.conftest import Bulk

FILE = """
[[models]]
match = ["tiny"]
aliases = { query = "query@production", "query@production" = "query@1" }
[models.prompts]
"query@1" = { template = "{lang} one {text}", lang = "a" }
"query@2" = "two {text}"
topic = "three {text}"
"""


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def begun(bulk: Bulk, prompts_file: Path, tmp_path: Path) -> tuple[str, ...]:
    """A run with a prompt, which has done two rows of three; return its arguments."""
    (tmp_path / "in.txt").write_text("red\nblue\ngreen\n")
    arguments = (f"{tmp_path}/in.txt", "-o", f"{tmp_path}/out.jsonl", "--prompts-file", str(prompts_file))
    assert bulk(*arguments, "--prompt", "query", "--limit", "2").returncode == 0
    return arguments


def identity(path: Path, name: str) -> str:
    return Prompts.for_model("tiny", file=path)[name].identity


def test_the_manifest_names_version_and_hash(begun: tuple[str, ...], prompts_file: Path) -> None:
    model = json.loads(Manifest.path(Path(begun[2])).read_text())["model"]
    assert model["prompt_identity"] == identity(prompts_file, "query@1")
    assert model["prompt_identity"].startswith("query@1; sha256=")
    assert model["prompt"] == "a one {text}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{lang} one", "{lang} two"),
        ('lang = "a"', 'lang = "b"'),
        ('production" = "query@1', 'production" = "query@2'),
    ],
)
def test_a_run_with_another_prompt_is_not_gone_on_with(
    bulk: Bulk, begun: tuple[str, ...], prompts_file: Path, before: str, after: str
) -> None:
    was = identity(prompts_file, "query")
    prompts_file.write_text(FILE.replace(before, after))
    result = bulk(*begun, "--prompt", "query", "--limit", "2", "--resume")
    assert result.returncode == 1
    now = identity(prompts_file, "query")
    assert f"model.prompt_identity was {was!r} and is {now!r}" in result.stderr


def test_a_run_goes_on_though_other_prompts_have_changed(
    bulk: Bulk, begun: tuple[str, ...], prompts_file: Path
) -> None:
    prompts_file.write_text(FILE.replace("three {text}", "four {text}").replace('"two {text}"', '"three {text}"'))
    assert bulk(*begun, "--prompt", "query", "--limit", "2", "--resume").returncode == 0


def test_without_a_prompt_none_is_named(bulk: Bulk, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("red\n")
    bulk(f"{tmp_path}/in.txt", "-o", f"{tmp_path}/out.jsonl")
    model = json.loads(Manifest.path(tmp_path / "out.jsonl").read_text())["model"]
    assert (model["prompt"], model["prompt_identity"]) == ("{text}", "")
