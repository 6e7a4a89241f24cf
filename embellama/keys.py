"""API keys: how one is made, and the TOML file that says what each may do.

embellama keys new ──► new_key ──► the key, shown once; its `KeyEntry`, for the file
the file ── read_keys ──► KeyEntry … ──► the server's gateway

The file has SHA-256 digests only. A key has 256 random bits, so there is nothing to guess, and no need of a slow hash.
"""

import hashlib
import secrets
import tomllib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from embellama.errors import ConfigError

# What every key begins with, so that scanners of code and logs can find one that was lost.
PREFIX = "embellama-"

Limit = Annotated[int, Meta(ge=0, le=10**15)]


class KeyGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do."""

    models: Annotated[tuple[str, ...], Meta(description="Models it may use; all if none is named.")] = ()
    requests_per_minute: Annotated[Limit, Meta(description="Most requests in a minute; 0 for no limit.")] = 0
    tokens_per_minute: Annotated[Limit, Meta(description="Most tokens in a minute; 0 for no limit.")] = 0
    tokens_per_day: Annotated[Limit, Meta(description="Most tokens in a day; 0 for no limit.")] = 0
    max_concurrent: Annotated[
        Limit, Meta(description="Most requests open at once, at each server; 0 for no limit.")
    ] = 0
    share_cache: Annotated[
        bool, Meta(description="Whether its rows may be kept for other keys, and those of others be its own.")
    ] = False
    admin: Annotated[bool, Meta(description="Whether it may read metrics and descriptions, and change models.")] = False


# What fields must look like, in place of msgspec's words for their patterns.
FORMS = {
    ".name": "it may have letters, digits and . _ @ -, 1 to 64 of them",
    ".sha256": "it must be 64 digits from 0 to f",
}


class KeyEntry(KeyGrant, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key of the file: its name, which logs tell, its digest, and what it may do."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


def new_key(name: str, grant: KeyGrant) -> tuple[str, KeyEntry]:
    """Make a key and its entry.

    Raises:
        ConfigError: The name has other characters than letters, digits and ``._@-``, or more than 64.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    values = {**msgspec.structs.asdict(grant), "name": name, "sha256": digest(key.encode())}
    try:
        return key, msgspec.convert(values, KeyEntry)
    except msgspec.ValidationError as error:
        raise ConfigError(_told(error, "the new key", values)) from None


def digest(key: bytes) -> str:
    """Return the SHA-256 of a key, as the file has it."""
    return hashlib.sha256(key).hexdigest()


def toml_entry(entry: KeyEntry) -> str:
    """Write an entry for the file, without the fields that are as they are by default."""
    grant = {
        field.name: value
        for field in msgspec.structs.fields(KeyGrant)
        if (value := getattr(entry, field.name)) != field.default
    }
    values: dict[str, Any] = {"name": entry.name, "sha256": entry.sha256, **grant}
    # TOML writes texts, lists of them, whole numbers and booleans as JSON does.
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in values.items()]
    return "\n".join(["[[keys]]", *lines])


def read_keys(path: str) -> list[KeyEntry]:
    """Read the tables ``[[keys]]`` of a TOML file.

    Raises:
        ConfigError: Names the file, the entry and the field; never a value that may be a key.
    """
    try:
        with open(path, "rb") as stream:
            tables = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{path}: not TOML: {error}") from None
    if others := tables.keys() - {"keys"}:
        raise ConfigError(f"{path}: there are only tables [[keys]] here, not {min(others)!r}")
    if not isinstance(tables.get("keys"), list) or not tables["keys"]:
        raise ConfigError(f"{path}: there is no table [[keys]], so nobody could ask anything")
    entries = [_entry(path, i, table) for i, table in enumerate(tables["keys"])]
    for field in ("name", "sha256"):
        places: dict[str, int] = {}
        for i, entry in enumerate(entries):
            first = places.setdefault(getattr(entry, field), i)
            if first != i:
                raise ConfigError(f"{path}: keys[{i}].{field} is that of keys[{first}], {entries[first].name!r}, too")
    return entries


def _entry(path: str, i: int, table: Any) -> KeyEntry:
    try:
        return msgspec.convert(table, KeyEntry)
    except msgspec.ValidationError as error:
        raise ConfigError(_told(error, f"{path}: keys[{i}]", table)) from None


def _told(error: msgspec.ValidationError, where: str, table: Any) -> str:
    """Say what is wrong with a table; of its values only whole numbers are shown, for others may be keys."""
    reason, _, place = str(error).partition(" - at `$")
    field = place.rstrip("`")
    value = table.get(field.removeprefix(".")) if isinstance(table, dict) else None
    shown = f" is {value}" if isinstance(value, int) else ""
    if "regex" in reason:
        reason = FORMS[field]
    return f"{where}{field}{shown}: {reason[0].lower()}{reason[1:]}"
