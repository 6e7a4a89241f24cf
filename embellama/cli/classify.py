"""`embellama classify`: print for each row of an output which label it is most like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from embellama.cli.flags import config_options
from embellama.cli.output import Command, json_line, write_line
from embellama.cli.stored import telling_errors
from embellama.config import CACHE_SETTINGS, EngineConfig
from embellama.errors import InputError
from embellama.remote.config import RemoteConfig
from embellama.vectors.classify import Classified, label_texts
from embellama.vectors.classify import classify as classify_rows
from embellama.vectors.queries import embed_for
from embellama.vectors.stored import StoredVectors


class Classification(msgspec.Struct, frozen=True):
    """A line that is printed.

    Attributes:
        index: The row's number in the input of the run.
        id: Its id.
        label: The label that it is most like.
        score: The cosine of the two.
        margin: By how much that is above the next label's.
    """

    index: int
    id: Any
    label: str
    score: float
    margin: float


@click.command(cls=Command)
@config_options(EngineConfig, RemoteConfig, unused=CACHE_SETTINGS)
@click.option("--labels", "listed", help="Labels, with commas between them.")
@click.option("--labels-file", "file", metavar="FILE", help="File of labels, one a line.")
@click.option("--template", default="{label}", show_default=True, help="Text that stands for a label: 'about {label}'.")
@click.option("--prompt", help="Prompt to write around each of these texts: query, classification, …")
@click.argument("output", metavar="OUT")
def classify(
    config: EngineConfig | RemoteConfig,
    listed: str | None,
    file: str | None,
    template: str,
    prompt: str | None,
    output: str,
) -> None:
    """Print for each row of OUT, an output of embellama bulk, the label that it is most like, as JSON lines.

    Nothing is trained: labels are embedded as texts. The model, in this process (--model-path) or that of servers
    (--url), must be the one that made OUT.
    """
    if (listed is None) == (file is None):
        raise click.UsageError("give either --labels or --labels-file")
    with telling_errors():
        labels = [label.strip() for label in listed.split(",")] if listed is not None else _read(str(file))
        texts = label_texts(labels, template)
        stored = StoredVectors(output)
        for found in classify_rows(embed_for(stored, config, texts, prompt=prompt, what="label"), stored.blocks()):
            _print(found, labels)


def _read(path: str) -> list[str]:
    """Read labels from a file, without the end of its last line."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: its byte {error.start} is {error.object[error.start]:#04x}") from None
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _print(found: Classified, labels: Sequence[str]) -> None:
    indices, ids = found.block.indices.tolist(), found.block.ids
    numbers = zip(found.labels.tolist(), found.scores.tolist(), found.margins.tolist(), strict=True)
    for index, id, (label, score, margin) in zip(indices, ids, numbers, strict=True):
        write_line(json_line(Classification(index, id, labels[label], round(score, 6), round(margin, 6))))
