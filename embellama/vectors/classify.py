"""Give each row the label whose vector is most like it: zero-shot classification, without any training."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embellama.errors import InputError, InvalidOption
from embellama.vectors.block import Block, Floats, Numbers, blocks_of


class Classified(NamedTuple):
    """What the rows of a block are.

    block: The rows.
    labels: The position of each one's label, ``(n,) int64``; of labels that are equally like it, the first.
    scores: The cosine of each row and its label, ``(n,) float32``.
    margins: By how much it is above that of the next label, ``(n,) float32``; near 0, the row may as well be that.
    """

    block: Block
    labels: Numbers
    scores: Floats
    margins: Floats


def label_texts(labels: Sequence[str], template: str = "{label}") -> list[str]:
    """Return the text that stands for each label.

    Raises:
        InvalidOption: There are fewer than two labels, one is empty, no text or there twice, or `template` does not
            have ``{label}`` in it.
    """
    if isinstance(labels, str):
        raise InvalidOption("labels", f"is {labels!r}; it must be a list of texts")
    if others := [label for label in labels if not isinstance(label, str)]:
        raise InvalidOption("labels", f"has {others[0]!r}, which is no text")
    if len(labels) < 2:
        raise InvalidOption("labels", f"has {len(labels)}: {', '.join(labels)!r}; there must be at least 2")
    for position, label in enumerate(labels):
        if not label.strip():
            raise InvalidOption("labels", f"has an empty one, number {position + 1} of {len(labels)}")
        if label in labels[:position]:
            raise InvalidOption("labels", f"has {label!r} twice")
    if "{label}" not in template:
        raise InvalidOption("template", f"is {template!r}; it must have {{label}} in it")
    return [template.replace("{label}", label) for label in labels]


def classify(labels: NDArray[Any], blocks: Iterable[Block]) -> Iterator[Classified]:
    """Give each row a label.

    Args:
        labels: The labels' vectors, ``(n_labels, dim)``, floats; at least two.
        blocks: The rows.

    Raises:
        InputError: A label's vector is none, or has not as many numbers as the rows.
    """
    units = np.concatenate([block.unit for block in blocks_of(labels, name="labels")]).astype(np.float64)
    for block in blocks:
        if block.rows.shape[1] != units.shape[1]:
            raise InputError(f"the labels have {units.shape[1]} dimensions and the rows {block.rows.shape[1]}")
        cosines = np.clip(block.rows.astype(np.float64) @ units.T / block.norms[:, None], -1, 1)
        best = cosines.argmax(axis=1)
        second, first = np.partition(cosines, -2, axis=1)[:, -2:].T
        yield Classified(block, best, first.astype(np.float32), (first - second).astype(np.float32))
