"""`embellama compare`: print how far the vectors of one output are from those of another."""

import click

from embellama.cli.output import Command, json_line, write_line
from embellama.cli.stored import telling_errors
from embellama.vectors.compare import Comparison
from embellama.vectors.compare import compare as compare_rows
from embellama.vectors.stored import StoredVectors


@click.command(cls=Command)
@click.option("--worst", type=int, default=10, show_default=True, help="Name so many of the rows that differ most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
def compare(worst: int, as_json: bool, a: str, b: str) -> None:
    """Compare the vectors of A and B, two outputs of embellama bulk for the same input, row by row.

    They may be of different formats, dtypes or models, if their vectors have as many numbers.
    """
    with telling_errors():
        found = compare_rows(StoredVectors(a).blocks(), StoredVectors(b).blocks(), worst)
    if as_json:
        write_line(json_line(found))
        return
    for line in _lines(found, a, b):
        write_line(line)


def _lines(found: Comparison, a: str, b: str) -> list[str]:
    facts = {
        "rows in both": str(found.rows),
        f"only in {a}": str(found.only_in_a),
        f"only in {b}": str(found.only_in_b),
    }
    facts |= {"mean cosine": f"{found.mean:.6f}"}
    facts |= {f"{percent}% have at most": f"{value:.6f}" for percent, value in reversed(found.percentiles.items())}
    facts |= {"least cosine": f"{found.least:.6f}"}
    facts |= {
        f"row {row.index}" + ("" if row.id is None else f", {row.id}"): f"{row.cosine:.6f}" for row in found.worst
    }
    width = max(map(len, facts))
    return [f"{name:{width}}  {value}" for name, value in facts.items()]
