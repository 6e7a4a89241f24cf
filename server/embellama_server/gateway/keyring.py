"""`Keyring`: the keys of a file, found by what a request's headers say.

headers ── presented ──► a key ── Keyring.account ──► its Account, or InvalidKey
SIGHUP ──► Keyring.reload: a file that is wrong leaves everything as it was
"""

import logging
from collections.abc import Iterable

from embellama.errors import ConfigError
from embellama.keys import KeyEntry, digest, read_keys
from embellama_server.gateway.meters import Account, LimitStore
from embellama_server.problems import InvalidKey

logger = logging.getLogger("embellama.gateway")

BEARER = b"bearer "


class Keyring:
    """Accounts by key and by name; used on the event loop."""

    def __init__(self, path: str, store: LimitStore):
        """Read the file; raises `ConfigError`."""
        self._path = path
        self._store = store
        self._by_digest: dict[str, Account] = {}
        self._by_name: dict[str, Account] = {}
        self._set(read_keys(path))

    @property
    def may_wait(self) -> bool:
        """Whether an account may have to wait for what was spent: it is not in memory."""
        return self._store.is_remote

    def reload(self) -> None:
        """Read the file again; where it is wrong, log why and go on with what was read before."""
        try:
            entries = read_keys(self._path)
        except ConfigError as error:
            logger.error("the keys that were read before stay valid: %s", error)
            return
        self._set(entries)
        logger.info("%d keys were read from %s", len(entries), self._path)

    def account(self, headers: Iterable[tuple[bytes, bytes]]) -> Account:
        """Find the account of a request; raises `InvalidKey`."""
        keys = presented(headers)
        if not keys:
            raise InvalidKey("no API key was sent: it goes into Authorization: Bearer, api-key or x-api-key")
        if len(keys) > 1:
            raise InvalidKey("the headers have different API keys; send one")
        # How long the look-up takes may tell of the digests that are known, but nothing of the keys: nobody can make a
        # key whose SHA-256 begins as he likes, but by trying, and then knows no more of any other.
        account = self._by_digest.get(digest(keys.pop()))
        if account is None:
            raise InvalidKey("the API key is not known here")
        return account

    def named(self, name: str) -> Account:
        """Return the account of an open request's caller, whose key may have gone from the file meanwhile."""
        return self._by_name[name]

    def find(self, name: str) -> KeyEntry | None:
        """Return the entry of a name in the file as it was read last; None if there is none."""
        account = self._by_name.get(name)
        return account.entry if account and self._by_digest.get(account.entry.sha256) is account else None

    def _set(self, entries: list[KeyEntry]) -> None:
        self._by_digest = {}
        for entry in entries:
            account = self._by_name.setdefault(entry.name, Account(entry, self._store))
            account.change(entry)
            self._by_digest[entry.sha256] = account


def presented(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """Return the keys that headers have: OpenAI's way to send one, Azure's, and others'."""
    keys = set()
    for name, value in headers:
        if name in (b"api-key", b"x-api-key"):
            keys.add(value.strip())
        elif name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
            keys.add(value[len(BEARER) :].strip())
    return keys - {b""}
