"""`embellama schema`: JSON Schemas of what embellama reads and writes, made of the types that do it.

The server's own, of requests and answers, come from `embellama-server --schema`: the library knows no HTTP.
"""

from typing import Any, TypedDict

import click
import msgspec

from embellama.bulk.job import BulkJob
from embellama.bulk.manifest import Manifest
from embellama.bulk.readers import JsonLine
from embellama.bulk.writers import OutputRow
from embellama.cli.output import Command, write_line
from embellama.config import EngineConfig
from embellama.keys import KeyEntry


class KeysFile(TypedDict):
    """The file of `embellama-server --keys-file`, in TOML."""

    keys: list[KeyEntry]


TYPES: dict[str, Any] = {
    "bulk-input": JsonLine,
    "bulk-output": OutputRow,
    "bulk-job": BulkJob,
    "manifest": Manifest,
    "config": EngineConfig,
    "keys": KeysFile,
}


@click.command(cls=Command)
@click.argument("name", type=click.Choice([*TYPES, "request", "response"]), metavar=f"[{'|'.join(TYPES)}]")
def schema(name: str) -> None:
    """Print a JSON Schema.

    bulk-input: a line of JSON lines that `embellama bulk` reads. bulk-output: one that it writes. bulk-job: the file of
    --job. manifest: the file beside an output. config: the file of --config. keys: the file of `embellama-server
    --keys-file`.

    Requests and responses are the server's: `embellama-server --schema request`.
    """
    if name not in TYPES:
        raise click.UsageError(f"{name} is a type of the server's: embellama-server --schema {name}")
    write_line(msgspec.json.format(msgspec.json.encode(schema_of(TYPES[name]))).decode())


def schema_of(kind: Any) -> dict[str, Any]:
    """Describe a type in JSON Schema."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
