"""`embellama dedupe`: print the rows of an output that are much like an earlier one."""

import contextlib
import tempfile
from typing import Any

import click
import msgspec

from embellama.cli.output import Command, json_line, write_line
from embellama.cli.stored import telling_errors
from embellama.vectors.duplicates import Duplicates, near_duplicates
from embellama.vectors.kept import KeptRows, ReadAgain, SpilledRows
from embellama.vectors.stored import StoredVectors


class Duplicate(msgspec.Struct, frozen=True):
    """A line that is printed.

    Attributes:
        index: The row's number in the input of the run.
        id: Its id.
        duplicate_of: The index of the earlier row that it is most like, which is no duplicate itself.
        score: The cosine of the two.
    """

    index: int
    id: Any
    duplicate_of: int
    score: float


@click.command(cls=Command)
@click.option(
    "--threshold", type=float, required=True, help="Least cosine of a duplicate, above 0 and at most 1: 0.95, say."
)
@click.argument("output", metavar="OUT")
def dedupe(threshold: float, output: str) -> None:
    """Print the near-duplicates among the rows of OUT, an output of embellama bulk, as JSON lines.

    Rows are taken in their order. One is a duplicate of the earlier row that is most like it and is none itself.
    """
    with telling_errors():
        stored = StoredVectors(output)
        kept: KeptRows = SpilledRows(stored.dim) if stored.take is None else ReadAgain(stored.take, stored.dim)
        n_rows = n_found = 0
        with contextlib.closing(kept):
            for found in near_duplicates(stored.blocks(), threshold, kept):
                n_rows += len(found.block.indices)
                n_found += len(found.positions)
                _print(found)
        click.echo(_told(output, n_rows, n_found, kept), err=True)


def _print(found: Duplicates) -> None:
    indices, ids = found.block.indices.tolist(), found.block.ids
    for position, of, score in zip(found.positions.tolist(), found.of.tolist(), found.scores.tolist(), strict=True):
        write_line(json_line(Duplicate(indices[position], ids[position], of, round(score, 6))))


def _told(output: str, n_rows: int, n_found: int, kept: KeptRows) -> str:
    told = f"{output}: {n_rows} rows, {n_found} near-duplicates, {n_rows - n_found} kept"
    if isinstance(kept, SpilledRows):
        told += f"; {kept.n_bytes / 1e6:.1f} MB were held in {tempfile.gettempdir()} meanwhile"
    return told
