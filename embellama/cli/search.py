"""`embellama search`: print the rows of an output that are most like a query."""

from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from embellama.cli.flags import config_options
from embellama.cli.output import Command, json_line, write_line
from embellama.cli.stored import telling_errors
from embellama.config import CACHE_SETTINGS, EngineConfig
from embellama.errors import check_number
from embellama.remote.config import RemoteConfig
from embellama.vectors.queries import embed_for
from embellama.vectors.search import Matches, top_k
from embellama.vectors.stored import StoredVectors


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line that is printed.

    Attributes:
        query: The position of the query among those given.
        rank: From 1.
        score: The cosine.
        index: The row's number in the input of the run.
        id: Its id.
        columns: The input's columns, where the output kept them.
    """

    query: int
    rank: int
    score: float
    index: int
    id: Any
    columns: dict[str, Any] | None = None


@click.command(cls=Command)
@config_options(EngineConfig, RemoteConfig, unused=CACHE_SETTINGS)
@click.option("--top-k", type=int, default=10, show_default=True, help="Print so many rows for each query.")
@click.option("--prompt", default="query", show_default=True, help="Prompt to write around each query; '' for none.")
@click.argument("output", metavar="OUT")
@click.argument("queries", nargs=-1, required=True, metavar="QUERY…")
def search(config: EngineConfig | RemoteConfig, top_k: int, prompt: str, output: str, queries: Sequence[str]) -> None:
    """Print the rows of OUT, an output of embellama bulk, that are most like each QUERY, as JSON lines.

    Every row is looked at, so none is missed. The model, in this process (--model-path) or that of servers (--url),
    must be the one that made OUT.
    """
    with telling_errors():
        for match in _found(config, top_k, prompt, StoredVectors(output), queries):
            write_line(json_line(match))


def _found(
    config: EngineConfig | RemoteConfig, k: int, prompt: str, stored: StoredVectors, queries: Sequence[str]
) -> Iterator[Match]:
    check_number("top_k", k, "it must be at least 1", 1)
    rows = embed_for(stored, config, queries, prompt=prompt or None, what="query")
    yield from _described(top_k(rows, stored.blocks(), k), stored)


def _described(found: Sequence[Matches], stored: StoredVectors) -> Iterator[Match]:
    told = stored.describe({int(index) for matches in found for index in matches.indices})
    for query, matches in enumerate(found):
        for rank, (index, score) in enumerate(zip(matches.indices.tolist(), matches.scores.tolist(), strict=True), 1):
            yield Match(query, rank, round(score, 6), index, *told[index])
