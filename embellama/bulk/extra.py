"""Packages of the extra `bulk`, or of another, imported when they are needed."""

import importlib
from typing import Any

from embellama.errors import ConfigError


def extra(name: str, what: str, of: str = "bulk") -> Any:
    """Import a package; raise `ConfigError` that says how to install it, and what for."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{what} need the package {name}: pip install 'embellama[{of}]' ({error})") from error


def arrow() -> Any:
    """Return `pyarrow`."""
    return extra("pyarrow", "compressed files, Parquet and Arrow")
