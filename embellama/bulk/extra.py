"""Packages of the extras `bulk` and `ray`, imported when they are needed."""

import importlib
from typing import Any

from embellama.errors import ConfigError


def extra(name: str, what: str, which: str = "bulk") -> Any:
    """Import a package; raise `ConfigError` that says how to install it, by which extra, and what for."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{what} need the package {name}: pip install 'embellama[{which}]' ({error})") from error


def arrow() -> Any:
    """Return `pyarrow`."""
    return extra("pyarrow", "compressed files, Parquet and Arrow")
