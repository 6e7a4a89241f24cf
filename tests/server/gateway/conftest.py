"""What tests of keys share: a file of keys, and their words."""

from pathlib import Path
from typing import Any

from embellama.keys import KeyGrant, new_key, toml_entry


class Keys:
    """A file of keys."""

    def __init__(self, folder: Path, **grants: dict[str, Any]):
        self.path = folder / "keys.toml"
        self._keys: dict[str, str] = {}
        self._entries: list[str] = []
        for name, grant in grants.items():
            self.add(name, **grant)

    def add(self, name: str, **grant: Any) -> None:
        """Make one more key, and write the file."""
        self._keys[name], entry = new_key(name, KeyGrant(**grant))
        self._entries.append(toml_entry(entry))
        self.path.write_text("\n".join(self._entries))

    def __getitem__(self, name: str) -> str:
        return self._keys[name]
