"""Labels, and rows beside rows: known answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embellama.errors import InputError, InvalidOption
from embellama.vectors.block import Block, blocks_of
from embellama.vectors.classify import classify, label_texts
from embellama.vectors.compare import compare


def indexed(indices: list[int], rows: list[list[float]], n_rows: int) -> Iterator[Block]:
    for block in blocks_of(np.array(rows, np.float32), n_rows=n_rows):
        yield block._replace(indices=np.array(indices)[block.places], ids=[f"id {indices[i]}" for i in block.places])


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 1), (2, 3), (9, 2), (9, 9)])
def test_rows_are_compared_by_their_index(n_a: int, n_b: int) -> None:
    a = indexed([0, 1, 3, 4, 8], [[1, 0], [1, 0], [1, 0], [3, 4], [1, 1]], n_a)
    b = indexed([1, 2, 4, 8, 9], [[0, 2], [1, 0], [3, 4], [-5, -5], [1, 0]], n_b)
    found = compare(a, b, 2)
    assert (found.rows, found.only_in_a, found.only_in_b) == (3, 2, 2)
    assert (found.mean, found.least) == (0, -1)
    assert found.percentiles["50"] == 0
    assert [(row.index, row.id, row.cosine) for row in found.worst] == [(8, "id 8", -1), (1, "id 1", 0)]


def test_what_cannot_be_compared_is_named() -> None:
    def plain(*shape: int) -> Iterator[Block]:
        return blocks_of(np.ones(shape))

    with pytest.raises(InputError, match="vectors of 2 dimensions cannot be compared with vectors of 3"):
        compare(plain(4, 2), plain(4, 3))
    with pytest.raises(InputError, match="no row is in both: 2 are in the one and 1 others in the other"):
        compare(indexed([0, 2], [[1], [1]], 9), indexed([1], [[1]], 9))
    with pytest.raises(InputError, match="row 2 comes after row 5"):
        compare(indexed([5, 2], [[1], [1]], 1), plain(9, 1))
    other = (block._replace(ids=["x"]) for block in plain(1, 1))
    with pytest.raises(InputError, match="row 0 is 'id 0' in the one and 'x' in the other"):
        compare(indexed([0], [[1]], 9), other)
    with pytest.raises(InvalidOption, match="worst is -1"):
        compare(plain(1, 1), plain(1, 1), -1)


@pytest.mark.parametrize("n_rows", [1, 2, 9])
def test_a_row_gets_the_label_that_it_is_most_like(n_rows: int) -> None:
    labels = np.array([[1, 0], [0, 2], [-1, 0]])
    rows = np.array([[3, 4], [5, 0], [-2, 0], [1, 1]])
    found = list(classify(labels, blocks_of(rows, n_rows=n_rows)))
    assert np.concatenate([each.labels for each in found]).tolist() == [1, 0, 2, 0]  # of equal ones the first
    np.testing.assert_allclose(np.concatenate([each.scores for each in found]), [0.8, 1, 1, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([each.margins for each in found]), [0.2, 1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "template", "says"),
    [
        (["a"], "{label}", "labels has 1: 'a'; there must be at least 2"),
        (["a", " "], "{label}", "labels has an empty one, number 2 of 2"),
        (["a", "b", "a"], "{label}", "labels has 'a' twice"),
        ("ab", "{label}", "labels is 'ab'; it must be a list of texts"),
        (["a", 3], "{label}", "labels has 3, which is no text"),
        (["a", "b"], "about", "template is 'about'; it must have {label} in it"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: Any, template: str, says: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        label_texts(labels, template)
    assert str(caught.value) == says
