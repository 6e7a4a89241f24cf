"""`embellama stats`: print what the requests of a request log come to."""

import click

from embellama.advice.report import check_chart
from embellama.cli.output import Command, json_line, write_line
from embellama.cli.stored import telling_errors
from embellama.records import chart as drawing
from embellama.records.compare import DAYS, Comparison, compare
from embellama.records.compare import table as comparison_table
from embellama.records.period import last_days
from embellama.records.stats import Stats, table
from embellama.records.stats import stats as stats_of
from embellama.records.tally import GROUPINGS, tally


@click.command(cls=Command)
@click.option("--days", type=click.FloatRange(0, min_open=True), help="How many days, up to now.  [default: 7]")
@click.option("--by", type=click.Choice(GROUPINGS), help="Print a row for each of these.")
@click.option(
    "--compare",
    "compared",
    nargs=2,
    metavar="A B",
    help="Compare two models by name, or two periods, such as 2026-11-20 or 2026-11-01..2026-11-07 (UTC).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.option("--chart", "chart_path", metavar="FILE", help="Draw requests and latencies to FILE.svg or FILE.png.")
@click.argument("folder", metavar="DIR")
def stats(
    days: float | None,
    by: str | None,
    compared: tuple[str, str] | None,
    as_json: bool,
    chart_path: str | None,
    folder: str,
) -> None:
    """Print what the requests come to that servers wrote to DIR (embellama-server --request-log DIR)."""
    if compared and (by or chart_path):
        raise click.UsageError(f"--compare does not go with {'--by' if by else '--chart'}")
    with telling_errors():
        found: Comparison | Stats = (
            compare(folder, *compared, days) if compared else _stats(folder, days or DAYS, by or "", chart_path)
        )
    if as_json:
        write_line(json_line(found))
        return
    for line in comparison_table(found) if isinstance(found, Comparison) else table(found):
        write_line(line)
    if found.unreadable_lines:
        click.echo(_left_out(found.unreadable_lines), err=True)


def _stats(folder: str, days: float, by: str, chart_path: str | None) -> Stats:
    if chart_path:
        check_chart(chart_path)
    period = last_days(days)
    counted = tally(folder, period, by, drawing.SLOTS if chart_path else 1)
    if not counted.groups:
        left_out = f"; {_left_out(counted.n_unreadable)}" if counted.n_unreadable else ""
        raise click.ClickException(f"{folder} has no requests from {period}{left_out}")
    if chart_path:
        drawing.chart(counted, by, chart_path)
    return stats_of(counted, by)


def _left_out(n_lines: int) -> str:
    return f"lines that are torn, or are none of a request log, were left out: {n_lines}"
