"""The `embellama` command."""

import json
import sys
from collections.abc import Sequence

import click

from embellama import __version__
from embellama.config import EngineConfig
from embellama.options import config_options


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="embellama")
def main() -> None:
    """Turn text into vectors with GGUF models on llama.cpp."""


@main.command()
@config_options(EngineConfig)
@click.argument("texts", nargs=-1)
def embed(config: EngineConfig, texts: Sequence[str]) -> None:
    """Print the embedding of each text as a JSON list, one a line.

    Without TEXTS, each line of standard input is a text.
    """
    from embellama.engine import EmbeddingEngine

    lines = texts or [line.rstrip("\r\n") for line in sys.stdin]
    with EmbeddingEngine(config) as engine:
        for row in engine.embed_batch(config.model_name, lines):
            click.echo(json.dumps(row.tolist()))
