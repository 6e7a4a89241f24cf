"""`embellama embed`: print the embedding of each text as a JSON list."""

import json
import sys
from collections.abc import Sequence

import click
import msgspec

from embellama.cli.flags import call_options, config_options
from embellama.config import EngineConfig
from embellama.engine import EmbeddingEngine
from embellama.options import EmbedOptions


@click.command()
@config_options(EngineConfig)
@call_options(EmbedOptions)
@click.argument("texts", nargs=-1)
def embed(config: EngineConfig, options: EmbedOptions, texts: Sequence[str]) -> None:
    """Print the embedding of each text as a JSON list, one a line.

    Without TEXTS, each line of standard input is a text.
    """
    lines = texts or (line.rstrip("\r\n") for line in sys.stdin)
    with EmbeddingEngine(config) as engine:
        for row in engine.embed_stream(config.model_name, lines, **msgspec.structs.asdict(options)):
            click.echo(json.dumps(row.tolist()))
