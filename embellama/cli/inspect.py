"""`embellama inspect`: print a GGUF file's facts and faults."""

import click
import msgspec

from embellama.advice import inspection
from embellama.cli.flags import config_options
from embellama.config import EngineConfig


@click.command()
@config_options(EngineConfig, argument="model_path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def inspect(config: EngineConfig, as_json: bool) -> None:
    """Say what the engine would do with a GGUF file, and warn of what is usually wrong with one."""
    found = inspection.inspect(config)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    facts = msgspec.structs.asdict(found.info) | msgspec.structs.asdict(found)
    for field in ("info", "warnings", "faster", "loaded", "changed"):
        del facts[field]
    facts["n_bytes"] = f"{found.info.n_bytes / 1e6:.1f} MB"
    width = max(map(len, facts))
    for field, value in facts.items():
        click.echo(f"{field:{width}}  {' '.join(value) or '—' if isinstance(value, list) else value}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}")
    if found.faster:
        click.echo(f"note: {found.faster}")
