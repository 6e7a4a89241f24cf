"""`embellama keys`: make API keys for the server.

    embellama keys new alice --tokens-per-minute 100000 >> keys.toml

The key goes to standard error, once; the entry that knows it by its digest to standard output.
"""

import click

from embellama.cli.flags import call_options
from embellama.cli.output import Command, Group, write_line
from embellama.errors import ConfigError
from embellama.keys import KeyGrant, new_key, toml_entry


@click.group(cls=Group)
def keys() -> None:
    """Make API keys for `embellama-server --keys-file`."""


@keys.command(cls=Command)
@click.argument("name")
@call_options(KeyGrant)
def new(name: str, options: KeyGrant) -> None:
    """Make a key called NAME: print the key once on standard error, and the file's entry on standard output."""
    try:
        key, entry = new_key(name, options)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    write_line(f"{toml_entry(entry)}\n")
    click.echo(f"The key, which is shown only here and kept nowhere:\n\n{key}\n", err=True)
