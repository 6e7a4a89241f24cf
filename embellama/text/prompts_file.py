"""A file of prompts, read and checked: for names of models their prompts, and aliases of those.

TOML ── read_models ──► ModelPrompts, one for each entry ──► Prompts.for_model

The format is in docs/prompts.md.
"""

import os
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from embellama.errors import ConfigError
from embellama.text.prompt import Prompt, by_name


class ModelPrompts(NamedTuple):
    """One entry of a file of prompts: patterns of model names, and the prompts of models with such names."""

    match: list[str]
    prompts: list[Prompt]
    aliases: dict[str, str]

    def matches(self, name: str) -> bool:
        """Tell whether one of the patterns covers the whole of `name`."""
        return any(fnmatchcase(_plain(name), _plain(pattern)) for pattern in self.match)


def read_models(file: str | os.PathLike[str], source: str = "") -> list[ModelPrompts]:
    """Read a file of prompts; its format is in docs/prompts.md.

    Args:
        file: The file.
        source: What errors about a prompt call it; its name by default.

    Raises:
        ConfigError: The file cannot be read or is wrong. The message names the file, the entry and the field.
    """
    try:
        with open(file, "rb") as stream:
            entries = msgspec.convert(tomllib.load(stream), _File).models
        source = source or Path(file).name
        return [_model(f"models[{i}]", entry, source) for i, entry in enumerate(entries)]
    except OSError as error:
        raise ConfigError(f"{os.fspath(file)}: {error.strerror or error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{os.fspath(file)}: {_told(error)}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{os.fspath(file)}: not TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(file)}: {error}") from None


_Name = Annotated[str, Meta(min_length=1)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    match: Annotated[list[_Name], Meta(min_length=1)]
    # Read one by one: msgspec's error would not say which is wrong.
    prompts: dict[_Name, Any] = {}
    aliases: dict[_Name, Any] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    models: list[_Entry]


def _model(where: str, entry: _Entry, source: str) -> ModelPrompts:
    prompts = [_prompt(f"{where}.prompts.{name}", name, value, source) for name, value in entry.prompts.items()]
    try:
        by_name(prompts, entry.aliases)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
    return ModelPrompts(entry.match, prompts, entry.aliases)


def _prompt(where: str, name: str, value: Any, source: str) -> Prompt:
    try:
        table = {"template": value} if isinstance(value, str) else msgspec.convert(value, dict[str, str])
        if "template" not in table:
            raise ConfigError("the template is missing")
        return Prompt(name, table.pop("template"), table, source)
    except msgspec.ValidationError:
        raise ConfigError(f"{where}: expected a string, or a table of strings, got {value!r}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _plain(name: str) -> str:
    """Write a name as file names do: "Nomic Embed Text v1.5" in a GGUF is nomic-embed-text-v1.5 elsewhere."""
    return name.casefold().translate(str.maketrans(" _/:", "----"))


def _told(error: msgspec.ValidationError) -> str:
    reason, _, where = str(error).partition(" - at `$")
    return f"{where.strip('`.')}: {reason[0].lower()}{reason[1:]}".removeprefix(": ")
