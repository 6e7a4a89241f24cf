"""`embellama inspect`: print a GGUF file's facts and faults."""

import click
import msgspec

from embellama.advice import inspection
from embellama.cli.flags import config_options
from embellama.cli.output import Command, json_line, write_line
from embellama.config import EngineConfig


@click.command(cls=Command)
@config_options(EngineConfig, argument="model_path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def inspect(config: EngineConfig, as_json: bool) -> None:
    """Say what the engine would do with a GGUF file, and warn of what is usually wrong with one."""
    found = inspection.inspect(config)
    if as_json:
        write_line(json_line(found))
        return
    facts = msgspec.structs.asdict(found.info) | msgspec.structs.asdict(found)
    for field in ("info", "warnings", "faster", "loaded", "changed", "compute_reason"):
        del facts[field]
    facts["compute"] = f"{found.info.compute}: {found.compute_reason}"
    for field in ("n_bytes", "memory_bytes"):
        facts[field] = f"{facts[field] / 1e6:.1f} MB"
    width = max(map(len, facts))
    for field, value in facts.items():
        write_line(f"{field:{width}}  {' '.join(value) or '—' if isinstance(value, list) else value}")
    for warning in found.warnings:
        write_line(f"warning: {warning}")
    if found.faster:
        write_line(f"note: {found.faster}")
