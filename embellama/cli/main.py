"""The `embellama` command."""

import click

from embellama import __version__
from embellama.cli.bench import bench
from embellama.cli.bulk import bulk
from embellama.cli.classify import classify
from embellama.cli.compare import compare
from embellama.cli.dedupe import dedupe
from embellama.cli.devices import devices
from embellama.cli.embed import embed
from embellama.cli.inspect import inspect
from embellama.cli.keys import keys
from embellama.cli.output import Group, check_output
from embellama.cli.prompts import prompts
from embellama.cli.schema import schema
from embellama.cli.search import search
from embellama.cli.stats import stats


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="embellama")
def main() -> None:
    """Turn text into vectors with GGUF models on llama.cpp."""
    check_output()  # before work whose result could not be printed


COMMANDS = (embed, bulk, search, dedupe, classify, compare, inspect, prompts, devices, bench, stats, keys, schema)

for command in COMMANDS:
    main.add_command(command)
