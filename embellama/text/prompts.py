"""Write a model's prompts around texts, by name: `query`, `document`, `clustering@2`, …

names of the model ──► Prompts.for_model ◄── the user's file, then prompts.toml beside this module
                             │
name, texts, fields ──► Prompts.apply ──► the texts with their prompt ──► Tokenizer.encode

A prompt is a template such as ``title: {title} | text: {text}``. `text` is in each template once; any other field is
given with the call, unless the template has a default for it. Texts and fields are never read as templates.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embellama.config import EngineConfig
from embellama.errors import PromptError
from embellama.gguf.header import Header
from embellama.text.prompt import Prompt, by_name, versions_of
from embellama.text.prompts_file import ModelPrompts, read_models

BUILT_IN = Path(__file__).with_name("prompts.toml")


class Prompts:
    """The prompts of one model. They never change; a file that is read again makes others.

    Every model has `query` and `document`; where it was published without them, they are the text as it is.

    Attributes:
        aliases: Other names, and the name of the prompt that each means.
        file: The file that has the model's entry; "" for none.
    """

    def __init__(self, prompts: Iterable[Prompt] = (), aliases: Mapping[str, str] | None = None, file: str = ""):
        """Collect prompts; `aliases` maps other names to theirs, or to those of other aliases.

        Raises:
            ConfigError: A name means two things, or nothing.
        """
        self._prompts = by_name(prompts, aliases or {})
        self.aliases = {alias: self._prompts[alias].name for alias in aliases or {}}
        self.file = file

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
        own = read_models(file) if file else []
        for path, models in ((file, own), (BUILT_IN, _built_in())):
            for name, model in itertools.product(filter(None, names), models):
                if model.matches(name):
                    return cls(model.prompts, model.aliases, os.fspath(path or ""))
        return cls()

    @classmethod
    def of(cls, config: EngineConfig, header: Header) -> "Prompts":
        """Find the prompts of a model by its name in the settings, what its file says of itself, and the file's name.

        Raises:
            ConfigError: `prompts_file` cannot be read or is wrong.
        """
        known = header.values
        file_name = Path(config.model_path).stem
        names = (config.model_name, known.get("general.name"), known.get("general.basename"), file_name)
        return cls.for_model(*names, file=config.prompts_file or None)

    @property
    def names(self) -> list[str]:
        """Every name `apply` takes: those of prompts, in the file's order, then aliases."""
        return list(self._prompts)

    @property
    def prompts(self) -> list[Prompt]:
        """Every prompt once, under its own name."""
        return [prompt for name, prompt in self._prompts.items() if name == prompt.name]

    def __contains__(self, name: str) -> bool:
        """Tell whether `name` is one of `names`, or has versions of which none is named by it alone."""
        return name in self._prompts or bool(versions_of(name, self._prompts))

    def __getitem__(self, name: str) -> Prompt:
        """Return one prompt.

        Raises:
            PromptError: The model has no prompt of that name, or versions of it alone.
        """
        try:
            return self._prompts[name]
        except KeyError:
            if versions := versions_of(name, self._prompts):
                raise PromptError(name, f"has versions: name one of {', '.join(versions)}") from None
            raise PromptError(name, f"is not one of this model's: {', '.join(self.names)}") from None

    def changes(self, later: "Prompts") -> list[str]:
        """Return the names that mean another content in `later`, or are in one of the two alone."""
        was, now = ({name: each[name].identity for name in each.names} for each in (self, later))
        return [name for name in {**was, **now} if was.get(name) != now.get(name)]

    def apply(self, name: str, texts: Iterable[Any], fields: Mapping[str, str] | None = None) -> list[Any]:
        """Write a prompt around each text.

        Args:
            name: The prompt's name, or an alias.
            texts: Texts to put in the place of the prompt's `text`. One that is empty or no `str` stays as it is: the
                tokenizer names that error.
            fields: The prompt's other fields, the same for all texts.

        Raises:
            PromptError: The model has no such prompt, or a field is missing, unknown or no `str`.
        """
        return self[name].written_around(texts, fields)


@functools.cache
def _built_in() -> list[ModelPrompts]:
    return read_models(BUILT_IN, "the built-in prompts.toml")
