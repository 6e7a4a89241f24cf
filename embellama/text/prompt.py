"""`Prompt`: one template, the hash of its content, and the names that prompts of one model may have.

name@version, template, defaults ──► Prompt ── around: fields put in ──► what is written before and after a text
names and aliases of an entry ── by_name ──► the prompt that each of them means

A version is part of a name: ``query@2`` is version 2 of ``query``. `Prompt.sha256` tells its content from any other.
"""

import functools
import hashlib
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from embellama.errors import ConfigError, PromptError

# Every model has these: `embed_query`, `embed_document` and reranking use them.
ALWAYS = ("query", "document")

# What stands between a name and its version.
AT = "@"

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Prompt(msgspec.Struct, frozen=True, dict=True, omit_defaults=True):
    """One template, ``{text}`` in it once, and defaults for its other fields.

    ``{{`` and ``}}`` stand for braces. A wrong template, or a name such as ``a@b@c``, raises `ConfigError`.

    Attributes:
        name: Its name, with its version if it has one: ``query@2``.
        template: What is written around a text.
        defaults: Values of fields that need not be given.
        source: The name of the file it is from, which errors tell; empty for none.
    """

    name: str
    template: str
    defaults: dict[str, str] = {}
    source: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        n_texts = [field for _, field in self._parts()].count("text")
        if n_texts != 1:
            raise ConfigError(f"template {self.template!r} has {{text}} {n_texts} times; it must have it once")
        for field in self.defaults:
            if field not in self.fields:
                raise ConfigError(f"template {self.template!r} has no field {field!r}; it has {_listed(self.fields)}")

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of template and defaults, 64 hexadecimal digits: of ``{"defaults":{…},"template":"…"}``, keys sorted."""
        content = {"defaults": self.defaults, "template": self.template}
        return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()

    @functools.cached_property
    def identity(self) -> str:
        """Name and hash in one line, as manifests and headers have them: ``query@2; sha256=…``.

        What a name has beside ASCII letters, digits and ``_.-~@/:+`` is percent-encoded.
        """
        return f"{quote(self.name, safe='@/:+')}; sha256={self.sha256}"

    @property
    def is_version(self) -> bool:
        """Whether it has a version, so that its content may not change once it was used."""
        return AT in self.name

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
                raise self._error(f"has no field {name!r}; it has {_listed(self.fields)}")
            if not isinstance(value, str):
                raise self._error(f"needs a str for {name!r}, not {type(value).__name__}")
        values = {**self.defaults, **fields}
        pieces = [""]
        for literal, field in self._parts():
            pieces[-1] += literal
            if field == "text":
                pieces.append("")
            elif field is not None:
                if field not in values:
                    raise self._error(f"needs the field {field!r}; it has {_listed(self.fields)}")
                pieces[-1] += values[field]
        before, after = pieces
        return before, after

    def written_around(self, texts: Iterable[Any], fields: Mapping[str, str] | None = None) -> list[Any]:
        """Write it around each text, with the same fields; one that is empty or no `str` stays as it is.

        Raises:
            PromptError: As `apply` does.
        """
        before, after = self.around(fields or {})
        return [f"{before}{text}{after}" if isinstance(text, str) and text else text for text in texts]

    def _error(self, reason: str) -> PromptError:
        return PromptError(self.name, f"of {self.source} {reason}" if self.source else reason)

    def _parts(self) -> Iterator[tuple[str, str | None]]:
        """Cut the template into literal parts, each with the field that follows it, if one does."""
        try:
            for literal, field, spec, conversion in string.Formatter().parse(self.template):
                if spec or conversion or (field is not None and not field.isidentifier()):
                    raise ConfigError(f"template {self.template!r} may have only plain names in braces")
                yield literal, field
        except ValueError as error:
            raise ConfigError(f"template {self.template!r} has unpaired braces: {error}") from None


def identities(prompts: Iterable[Prompt]) -> str:
    """Return the identity of each prompt in one line, with commas between them."""
    return ", ".join(prompt.identity for prompt in prompts)


def check_name(name: str) -> None:
    """Raise `ConfigError` for a name that has an ``@`` in it, but not as NAME@VERSION."""
    base, at, version = name.partition(AT)
    if at and not (base and _VERSION.fullmatch(version)):
        raise ConfigError(
            f"the name {name!r} is not NAME@VERSION, where a version has letters, digits and . _ -, 1 to 64 of them, "
            "the first a letter or digit"
        )


def versions_of(name: str, prompts: Iterable[str]) -> list[str]:
    """Return those names that are versions of `name`, in their order."""
    return [each for each in prompts if each.partition(AT)[:2] == (name, AT)]


def by_name(prompts: Iterable[Prompt], aliases: Mapping[str, Any]) -> dict[str, Prompt]:
    """Find the prompt that each name and each alias of one model means: prompts first, then aliases.

    `query` and `document` are the text as it is where there is neither a prompt of that name nor a version.

    Raises:
        ConfigError: A name means two things, or nothing. The message begins with the entry's field.
    """
    own = {prompt.name: prompt for prompt in prompts}
    for name in own:
        if AT not in name and (versions := versions_of(name, own)):
            raise ConfigError(
                f"prompts.{name}: there is {versions[0]}, too; a name has versions or a template, not both"
            )
    bare = {name: Prompt(name, "{text}") for name in ALWAYS if not versions_of(name, own)}
    known = {**bare, **own}
    found = dict(known)
    for alias in aliases:
        found[alias] = _meant(alias, aliases, known)
    for name in ALWAYS:
        if name not in found:
            raise ConfigError(
                f"aliases.{name}: missing; {name} has {', '.join(versions_of(name, own))}, and every model has a plain "
                f"{name}, so the file must say which of them that is"
            )
    return found


def _meant(alias: str, aliases: Mapping[str, Any], known: Mapping[str, Prompt]) -> Prompt:
    """Follow an alias, and others that it names, to a prompt."""
    where = f"aliases.{alias}"
    try:
        check_name(alias)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if alias in known:
        raise ConfigError(f"{where}: a prompt has that name")
    way, name = [alias], aliases[alias]
    while isinstance(name, str) and name in aliases:
        way.append(name)
        if name in way[:-1]:
            raise ConfigError(f"{where}: it goes round in a circle: {' → '.join(way)}")
        name = aliases[name]
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{where}: there is no prompt {name!r}; there is {', '.join(known)}")
    base = alias.partition(AT)[0]
    if (AT in alias or versions_of(alias, known)) and name.partition(AT)[0] != base:
        raise ConfigError(f"{where}: {name!r} is no version of {base!r}")
    return known[name]


def _listed(fields: list[str]) -> str:
    return ", ".join(fields) or "none but text"
