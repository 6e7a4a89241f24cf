"""`embellama prompts`: list a model's prompts, show one, write one around texts.

    embellama prompts list --model-path models/minilm.gguf --prompts-file prompts.toml

The model's file is asked for its names only; nothing is loaded.
"""

import json
from collections.abc import Sequence

import click
import msgspec

from embellama.cli.flags import config_options
from embellama.cli.output import Command, Group, json_line, write_line
from embellama.config import EngineConfig
from embellama.gguf.header import Header
from embellama.text.prompt import Prompt
from embellama.text.prompts import Prompts
from embellama.text.tokenizer import checked

# So many digits of a hash tell prompts from each other in a list.
N_DIGITS = 12

# Settings that say which prompts a model has.
USED = ("model_path", "model_name", "prompts_file")

model_options = config_options(
    EngineConfig, unused=[name for name in EngineConfig.__struct_fields__ if name not in USED]
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")


class PromptDescription(msgspec.Struct):
    """A prompt, as JSON tells it.

    Attributes:
        name: Its name, with its version.
        aliases: Other names for it.
        template: What is written around a text.
        fields: Names of its fields beside the text.
        defaults: Values of those that need not be given.
        sha256: Hash of template and defaults.
        file: The file that has it; "" for the text as it is.
    """

    name: str
    aliases: list[str]
    template: str
    fields: list[str]
    defaults: dict[str, str]
    sha256: str
    file: str


@click.group(cls=Group)
def prompts() -> None:
    """List a model's prompts, show one, or write one around texts."""


@prompts.command("list", cls=Command)
@model_options
@json_option
def list_prompts(config: EngineConfig, as_json: bool) -> None:
    """List the model's prompts: names with versions, other names, fields, and the beginning of each hash."""
    known = _prompts_of(config)
    found = [_described(known, prompt) for prompt in known.prompts]
    if as_json:
        write_line(json_line(found))
        return
    rows = [("prompt", "also", "fields", "sha256")]
    rows += [
        (each.name, ", ".join(each.aliases) or "—", ", ".join(each.fields) or "—", each.sha256[:N_DIGITS])
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        write_line("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    write_line(f"from {known.file}" if known.file else "no file has an entry for this model")


@prompts.command(cls=Command)
@model_options
@json_option
@click.argument("name")
def show(config: EngineConfig, as_json: bool, name: str) -> None:
    """Show the prompt that NAME means: its template, defaults and hash."""
    known = _prompts_of(config)
    found = _described(known, known[name])
    if as_json:
        write_line(json_line(found))
        return
    facts = {
        "name": found.name,
        "also": ", ".join(found.aliases) or "—",
        "template": json.dumps(found.template, ensure_ascii=False),
        **{f"default {field}": json.dumps(value, ensure_ascii=False) for field, value in found.defaults.items()},
        "needs": ", ".join(field for field in found.fields if field not in found.defaults) or "—",
        "sha256": found.sha256,
        "file": found.file or "—",
    }
    width = max(map(len, facts))
    for fact, value in facts.items():
        write_line(f"{fact:{width}}  {value}")


@prompts.command(cls=Command)
@model_options
@json_option
@click.option("--field", "fields", multiple=True, metavar="NAME=VALUE", help="Value of a field; once for each.")
@click.argument("name")
@click.argument("texts", nargs=-1, required=True)
def render(config: EngineConfig, as_json: bool, fields: Sequence[str], name: str, texts: Sequence[str]) -> None:
    """Write the prompt that NAME means around each of TEXTS, and print what a model would read.

    With --json each is a string of JSON on a line of its own.
    """
    prompt = _prompts_of(config)[name]
    for text in prompt.written_around(checked(texts), _values(fields)):
        write_line(json.dumps(text, ensure_ascii=False) if as_json else text)


def _prompts_of(config: EngineConfig) -> Prompts:
    return Prompts.of(config, Header(config.model_path))


def _described(known: Prompts, prompt: Prompt) -> PromptDescription:
    return PromptDescription(
        name=prompt.name,
        aliases=[alias for alias, name in known.aliases.items() if name == prompt.name],
        template=prompt.template,
        fields=prompt.fields,
        defaults=prompt.defaults,
        sha256=prompt.sha256,
        file=known.file if prompt.source else "",
    )


def _values(fields: Sequence[str]) -> dict[str, str]:
    """Read ``name=value`` of each field."""
    found: dict[str, str] = {}
    for given in fields:
        name, equals, value = given.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--field is {given!r}; it must be NAME=VALUE")
        if name in found:
            raise click.UsageError(f"--field gives {name!r} twice")
        found[name] = value
    return found
