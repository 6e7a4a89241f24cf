"""The `embellama` command."""

import json
import sys
from collections.abc import Sequence

import click
import msgspec

from embellama import __version__
from embellama.cli.flags import config_options
from embellama.config import EngineConfig
from embellama.errors import EmbellamaError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="embellama")
def main() -> None:
    """Turn text into vectors with GGUF models on llama.cpp."""


def _tokens(value: str | None) -> str | int:
    return int(value) if value and value.isdecimal() else value or "none"


@main.command()
@config_options(EngineConfig)
@click.option("--prompt", help="Prompt to write around each text: query, document, …")
@click.option("--truncate", help="For texts that are too long: none (an error), end, start or a number of tokens.")
@click.option("--dimensions", type=int, help="Keep this many numbers of each vector.")
@click.option("--dtype", default="float32", show_default=True, help="float32, float16, int8, uint8, binary or ubinary.")
@click.argument("texts", nargs=-1)
def embed(
    config: EngineConfig,
    prompt: str | None,
    truncate: str | None,
    dimensions: int | None,
    dtype: str,
    texts: Sequence[str],
) -> None:
    """Print the embedding of each text as a JSON list, one a line.

    Without TEXTS, each line of standard input is a text.
    """
    from embellama.engine import EmbeddingEngine

    lines = texts or (line.rstrip("\r\n") for line in sys.stdin)
    with EmbeddingEngine(config) as engine:
        options = {"prompt": prompt, "truncate": _tokens(truncate), "dimensions": dimensions, "dtype": dtype}
        for row in engine.embed_stream(config.model_name, lines, **options):  # type: ignore[arg-type]
            click.echo(json.dumps(row.tolist()))


@main.command()
@config_options(EngineConfig, argument="model_path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def inspect(config: EngineConfig, as_json: bool) -> None:
    """Say what the engine would do with a GGUF file, and warn of what is usually wrong with one."""
    from embellama.advice.inspection import inspect

    found = inspect(config)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    facts = msgspec.structs.asdict(found.info) | msgspec.structs.asdict(found)
    for field in ("info", "warnings", "loaded", "changed"):
        del facts[field]
    facts["n_bytes"] = f"{found.info.n_bytes / 1e6:.1f} MB"
    width = max(map(len, facts))
    for field, value in facts.items():
        click.echo(f"{field:{width}}  {' '.join(value) or '—' if isinstance(value, list) else value}")
    for warning in found.warnings:
        click.echo(f"warning: {warning}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead.")
def devices(as_json: bool) -> None:
    """List what this build of llama.cpp can compute on."""
    from embellama.machine.devices import GPU_BUILD, devices, gpu_build

    found = devices()
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for device in found:
        free, total = device.free_bytes / 1e9, device.total_bytes / 1e9
        click.echo(f"{device.name}  {device.kind}  {device.description}  {free:.1f} of {total:.1f} GB free")
    if not gpu_build():
        click.echo(f"This build uses no GPU; {GPU_BUILD}")


@main.command()
@click.option("--seconds", type=click.FloatRange(1), default=30, show_default=True, help="How long it may take, about.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.option("--chart", "chart_path", metavar="FILE", help="Draw speed, size and fidelity to FILE.svg or FILE.png.")
@click.argument("paths", nargs=-1, required=True, metavar="MODEL.GGUF…")
def bench(seconds: float, as_json: bool, chart_path: str | None, paths: Sequence[str]) -> None:
    """Say which format of a model, and which settings, are fastest on this machine.

    One file is made into F32, F16, BF16 and Q8_0 in a temporary folder; several files are measured as they are. The
    machine should have nothing else to do.
    """
    from embellama.advice.bench import bench
    from embellama.advice.report import chart, check_chart, table

    try:
        if chart_path:
            check_chart(chart_path)
        report = bench(paths, seconds)
        if chart_path:
            chart(report, chart_path)
    except (EmbellamaError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(msgspec.json.encode(report) if as_json else table(report))
