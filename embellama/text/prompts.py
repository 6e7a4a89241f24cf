"""Write a model's prompts around texts, by name: `query`, `document`, `clustering`, …

names of the model ──► Prompts.for_model ◄── the user's file, then prompts.toml beside this module
                             │
name, texts, fields ──► Prompts.apply ──► the texts with their prompt ──► Tokenizer.encode

A prompt is a template such as ``title: {title} | text: {text}``. `text` is in each template once; any other field is
given with the call, unless the template has a default for it. Texts and fields are never read as templates.
"""

import functools
import itertools
import os
import string
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from embellama.errors import ConfigError, PromptError

BUILT_IN = Path(__file__).with_name("prompts.toml")


class Prompts:
    """The prompts of one model.

    Every model has `query` and `document`; where it was published without them, they are the text as it is.
    """

    def __init__(self, prompts: Iterable["Prompt"] = (), aliases: Mapping[str, str] | None = None):
        """Collect prompts; `aliases` maps other names to theirs."""
        self._prompts = {name: Prompt(name, "{text}") for name in ("query", "document")}
        self._prompts |= {prompt.name: prompt for prompt in prompts}
        self._prompts |= {alias: self._prompts[name] for alias, name in (aliases or {}).items()}

    @classmethod
    def for_model(cls, *names: str | None, file: str | os.PathLike[str] | None = None) -> "Prompts":
        """Find the prompts of a model.

        Args:
            *names: What the model is called, the surest name first; None and "" are passed over.
            file: The user's own entries, asked before the built-in ones.

        Returns:
            The prompts of the first entry that matches the first name any entry matches; just `query` and `document`,
            both the text as it is, when none does.

        Raises:
            ConfigError: `file` cannot be read or is wrong. The message names the file, the entry and the field.
        """
        for models in (read_models(file) if file else [], _built_in()):
            for name, model in itertools.product(filter(None, names), models):
                if model.matches(name):
                    return cls(model.prompts, model.aliases)
        return cls()

    @property
    def names(self) -> list[str]:
        """Every name `apply` takes: `query` and `document` first, then other prompts, then aliases."""
        return list(self._prompts)

    def __getitem__(self, name: str) -> "Prompt":
        """Return one prompt.

        Raises:
            PromptError: The model has no prompt of that name.
        """
        try:
            return self._prompts[name]
        except KeyError:
            raise PromptError(name, f"is not one of this model's: {', '.join(self.names)}") from None

    def apply(self, name: str, texts: Iterable[str], fields: Mapping[str, str] | None = None) -> list[str]:
        """Write a prompt around each text.

        Args:
            name: The prompt's name, or an alias.
            texts: Texts to put in the place of the prompt's `text`. One that is empty or no `str` stays as it is: the
                tokenizer names that error.
            fields: The prompt's other fields, the same for all texts.

        Raises:
            PromptError: The model has no such prompt, or a field is missing, unknown or no `str`.
        """
        before, after = self[name].around(fields or {})
        return [f"{before}{text}{after}" if isinstance(text, str) and text else text for text in texts]


class Prompt(msgspec.Struct, frozen=True):
    """One template, ``{text}`` in it once, and defaults for its other fields.

    ``{{`` and ``}}`` stand for braces. A wrong template raises `ConfigError`.
    """

    name: str
    template: str
    defaults: dict[str, str] = {}

    def __post_init__(self) -> None:
        n_texts = [field for _, field in self._parts()].count("text")
        if n_texts != 1:
            raise ConfigError(f"template {self.template!r} has {{text}} {n_texts} times; it must have it once")
        for field in self.defaults:
            if field not in self.fields:
                raise ConfigError(f"template {self.template!r} has no field {field!r}; it has {_listed(self.fields)}")

    @property
    def fields(self) -> list[str]:
        """Names of the fields beside `text`, in the template's order."""
        return list(dict.fromkeys(field for _, field in self._parts() if field and field != "text"))

    def apply(self, text: str, /, **fields: str) -> str:
        """Return the template with `text` and `fields` put in, exactly as they are.

        Raises:
            PromptError: A field is missing, unknown or no `str`.
        """
        before, after = self.around(fields)
        return f"{before}{text}{after}"

    def around(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """Return the template's parts before and after the text, fields put in. Raises as `apply` does."""
        for name, value in fields.items():
            if name not in self.fields:
                raise PromptError(self.name, f"has no field {name!r}; it has {_listed(self.fields)}")
            if not isinstance(value, str):
                raise PromptError(self.name, f"needs a str for {name!r}, not {type(value).__name__}")
        values = {**self.defaults, **fields}
        pieces = [""]
        for literal, field in self._parts():
            pieces[-1] += literal
            if field == "text":
                pieces.append("")
            elif field is not None:
                if field not in values:
                    raise PromptError(self.name, f"needs the field {field!r}; it has {_listed(self.fields)}")
                pieces[-1] += values[field]
        before, after = pieces
        return before, after

    def _parts(self) -> Iterator[tuple[str, str | None]]:
        """Cut the template into literal parts, each with the field that follows it, if one does."""
        try:
            for literal, field, spec, conversion in string.Formatter().parse(self.template):
                if spec or conversion or (field is not None and not field.isidentifier()):
                    raise ConfigError(f"template {self.template!r} may have only plain names in braces")
                yield literal, field
        except ValueError as error:
            raise ConfigError(f"template {self.template!r} has unpaired braces: {error}") from None


class ModelPrompts(NamedTuple):
    """One entry of a file of prompts: patterns of model names, and the prompts of models with such names."""

    match: list[str]
    prompts: list[Prompt]
    aliases: dict[str, str]

    def matches(self, name: str) -> bool:
        """Tell whether one of the patterns covers the whole of `name`."""
        return any(fnmatchcase(_plain(name), _plain(pattern)) for pattern in self.match)


def read_models(file: str | os.PathLike[str]) -> list[ModelPrompts]:
    """Read a file of prompts; its format is in docs/prompts.md.

    Raises:
        ConfigError: The file cannot be read or is wrong. The message names the file, the entry and the field.
    """
    try:
        with open(file, "rb") as stream:
            entries = msgspec.convert(tomllib.load(stream), _File).models
        return [_model(f"models[{i}]", entry) for i, entry in enumerate(entries)]
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


def _model(where: str, entry: _Entry) -> ModelPrompts:
    prompts = [_prompt(f"{where}.prompts.{name}", name, value) for name, value in entry.prompts.items()]
    names = dict.fromkeys(["query", "document", *entry.prompts])
    for alias, name in entry.aliases.items():
        if alias in names:
            raise ConfigError(f"{where}.aliases.{alias}: a prompt has that name")
        if not isinstance(name, str) or name not in names:
            raise ConfigError(f"{where}.aliases.{alias}: there is no prompt {name!r}; there is {', '.join(names)}")
    return ModelPrompts(entry.match, prompts, entry.aliases)


def _prompt(where: str, name: str, value: Any) -> Prompt:
    try:
        table = {"template": value} if isinstance(value, str) else msgspec.convert(value, dict[str, str])
        if "template" not in table:
            raise ConfigError("the template is missing")
        return Prompt(name, table.pop("template"), table)
    except msgspec.ValidationError:
        raise ConfigError(f"{where}: expected a string, or a table of strings, got {value!r}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


@functools.cache
def _built_in() -> list[ModelPrompts]:
    return read_models(BUILT_IN)


def _plain(name: str) -> str:
    """Write a name as file names do: "Nomic Embed Text v1.5" in a GGUF is nomic-embed-text-v1.5 elsewhere."""
    return name.casefold().translate(str.maketrans(" _/:", "----"))


def _listed(fields: list[str]) -> str:
    return ", ".join(fields) or "none but text"


def _told(error: msgspec.ValidationError) -> str:
    reason, _, where = str(error).partition(" - at `$")
    return f"{where.strip('`.')}: {reason[0].lower()}{reason[1:]}".removeprefix(": ")
