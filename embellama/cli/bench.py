"""`embellama bench`: measure formats and settings of a model, and print the report."""

from collections.abc import Sequence

import click

from embellama.advice.bench import bench as run_bench
from embellama.advice.kept import keep
from embellama.advice.report import chart, check_chart, table
from embellama.cli.output import Command, json_line, write_line
from embellama.errors import EmbellamaError


@click.command(cls=Command)
@click.option("--seconds", type=click.FloatRange(1), default=30, show_default=True, help="How long it may take, about.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.option("--chart", "chart_path", metavar="FILE", help="Draw speed, size and fidelity to FILE.svg or FILE.png.")
@click.argument("paths", nargs=-1, required=True, metavar="MODEL.GGUF…")
def bench(seconds: float, as_json: bool, chart_path: str | None, paths: Sequence[str]) -> None:
    """Say which format of a model, and which settings, are fastest on this machine.

    One file is made into F32, F16, BF16 and Q8_0 in a temporary folder; several files are measured as they are. The
    machine should have nothing else to do. The last report is kept: the page of a server on this machine shows it.
    """
    try:
        if chart_path:
            check_chart(chart_path)
        report = run_bench(paths, seconds)
        keep(report)
        if chart_path:
            chart(report, chart_path)
    except (EmbellamaError, OSError) as error:
        raise click.ClickException(str(error)) from error
    write_line(json_line(report) if as_json else table(report))
