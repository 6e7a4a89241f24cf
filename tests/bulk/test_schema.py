"""The schemas describe what is read and written: what embellama reads and writes is valid by them."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from embellama_server.cli import main as server_main

from embellama.cli.main import main
from embellama.cli.schema import TYPES
from embellama.keys import KeyGrant, new_key, toml_entry
from tests.bulk.conftest import Bulk, lines


def schema(name: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["schema", name])
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.output)
    return shown


@pytest.mark.parametrize("name", TYPES)
def test_every_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_what_bulk_reads_and_writes_is_valid(bulk: Bulk, tmp_path: Path) -> None:
    source, out, job = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "job.toml"
    source.write_text('{"text":"red","more":[1]}\n"blue"\n""\n')
    job.write_text(f'inputs = ["{source}"]\noutput = "{out}"\nkeep_columns = true\n')
    assert bulk("--job", job).returncode == 3
    for name, found in {
        "bulk-input": lines(source),
        "bulk-output": lines(out),
        "bulk-job": [tomllib.loads(job.read_text())],
        "manifest": [json.loads((tmp_path / "out.jsonl.manifest.json").read_text())],
    }.items():
        for each in found:
            jsonschema.validate(each, schema(name))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(1, schema(name))


def test_settings_and_keys_are_valid() -> None:
    jsonschema.validate({"model_path": "a.gguf", "n_ctx": 128}, schema("config"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model_path": "a.gguf", "n_ctx": -1}, schema("config"))
    _, entry = new_key("alice", KeyGrant(admin=True))
    jsonschema.validate(tomllib.loads(toml_entry(entry)), schema("keys"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request", {"model": "minilm", "input": ["red"]}),
        (
            "response",
            {"object": "list", "data": [], "model": "minilm", "usage": {"prompt_tokens": 1, "total_tokens": 1}},
        ),
        ("config", {"port": 8000}),
    ],
)
def test_the_server_shows_its_own(name: str, value: dict[str, Any]) -> None:
    result = CliRunner().invoke(server_main, ["--schema", name])
    assert result.exit_code == 0, result.output
    jsonschema.validate(value, json.loads(result.output))
    if name != "config":
        assert f"embellama-server --schema {name}" in CliRunner().invoke(main, ["schema", name]).output
