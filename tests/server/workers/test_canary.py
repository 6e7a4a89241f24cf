"""A worker's canary must be the first worker's, but for its last digits."""

import numpy as np
import pytest
from embellama_server.workers.canary import Canary

TEXT = np.arange(5, dtype=np.int32)
ROW = np.array([0.6, 0.8, 0.0], np.float32)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([0.6, 0.8, 0.0], ""),
        ([0.6001, 0.7999, 0.001], ""),
        ([0.6, 0.8, 0.1], "its canary has cosine 0.99504 to the first worker's"),
        ([-0.6, -0.8, 0.0], "its canary has cosine -1.00000 to the first worker's"),
        ([0.6, 0.8], "its canary has 2 dimensions, the first worker's 3"),
    ],
)
def test_a_vector_must_point_where_the_first_did(row: list[float], fault: str) -> None:
    canary = Canary(TEXT, scores=False)
    assert not canary.is_known
    assert canary.difference(ROW) == ""
    assert canary.is_known
    assert canary.difference(np.array(row, np.float32)) == fault


@pytest.mark.parametrize(("score", "agrees"), [(0.019, True), (-0.019, True), (0.05, False)])
def test_a_score_may_differ_a_little(score: float, agrees: bool) -> None:
    canary = Canary(TEXT, scores=True)
    canary.difference(np.zeros(1, np.float32))
    assert (canary.difference(np.array([score], np.float32)) == "") == agrees
