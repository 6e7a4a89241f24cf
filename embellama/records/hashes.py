"""`TextHash`: hashes of texts in a request log, keyed by a secret of its folder.

A plain hash of a short text can be reversed by guessing. This one can only be by who has `hash.key` as well as the
lines; without the file, nobody can tell which text a hash is of.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from embellama.errors import ConfigError

KEY_NAME = "hash.key"
KEY_BYTES = 32

# 64 bits: of a hundred million texts, two would have one hash with a chance of 0.0003.
HASH_BYTES = 8


class TextHash:
    """Hashes texts with the key of a folder.

    Raises:
        ConfigError: The folder has no key, or the file has something else.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / KEY_NAME
        try:
            self._key = bytes.fromhex(path.read_text("ascii"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it has no key"
            raise ConfigError(f"{path} cannot be read: {reason}") from None
        if len(self._key) != KEY_BYTES:
            raise ConfigError(f"{path} has a key of {len(self._key)} bytes; it must have {KEY_BYTES}")

    def __call__(self, text: str | Sequence[int]) -> str:
        """Return the hash of a text, or of token ids, in hexadecimal digits."""
        data = as_text(text).encode()
        return hashlib.blake2b(data, digest_size=HASH_BYTES, key=self._key).hexdigest()


def as_text(text: str | Sequence[int]) -> str:
    """Return a text as it is, and token ids as JSON."""
    return text if isinstance(text, str) else msgspec.json.encode([int(each) for each in text]).decode()


def make_key(folder: Path) -> None:
    """Make the key of a folder, unless it has one, made by another process perhaps just now; raises `OSError`."""
    if (folder / KEY_NAME).exists():
        return
    new = folder / f"{KEY_NAME}.{secrets.token_hex(8)}"
    new.touch(0o600)
    try:
        new.write_text(secrets.token_hex(KEY_BYTES), "ascii")
        with contextlib.suppress(FileExistsError):
            os.link(new, folder / KEY_NAME)  # whole or not at all, and never over another
    finally:
        new.unlink()
