"""`embellama embed`: print the embedding of each text as a JSON list."""

import codecs
import json
import sys
from collections.abc import Iterator, Sequence

import click
import msgspec

from embellama.cli.flags import call_options, config_options
from embellama.cli.output import Command, write_line
from embellama.config import EngineConfig
from embellama.engine import EmbeddingEngine
from embellama.errors import EmbellamaError, InvalidText
from embellama.options import EmbedOptions


@click.command(cls=Command)
@config_options(EngineConfig)
@call_options(EmbedOptions)
@click.argument("texts", nargs=-1)
def embed(config: EngineConfig, options: EmbedOptions, texts: Sequence[str]) -> None:
    """Print the embedding of each text as a JSON list, one a line.

    Without TEXTS, each line of standard input is a text.
    """
    try:
        with EmbeddingEngine(config) as engine:
            for row in engine.embed_stream(config.model_name, texts or _lines(), **msgspec.structs.asdict(options)):
                write_line(json.dumps(row.tolist()))
    except EmbellamaError as error:
        index = getattr(error, "index", None)
        if texts or index is None:
            raise
        raise click.ClickException(str(error).replace(f"text {index}", f"line {index + 1}", 1)) from error


def _lines() -> Iterator[str]:
    """Read texts from standard input: UTF-8 whatever the locale, and without the mark that some editors begin with."""
    if sys.stdin is None:
        raise click.UsageError("standard input is closed; give TEXTS")
    for index, line in enumerate(sys.stdin.buffer):
        if index == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8: its byte {error.start} is {line[error.start]:#04x}"
            raise InvalidText(index, reason) from None
