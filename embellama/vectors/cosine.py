"""Cosines: many at once and nearly right, or a few exactly.

A product of two blocks in float32 is fast, but its last digits depend on the shapes of the blocks. So whoever must not
depend on them takes from the product what may be best, with `margin` to spare, and measures that again with `exact`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embellama.vectors.block import Floats

# Pairs that are measured at once, in numbers: 16 MiB of float64 for each of two sides.
EXACT_NUMBERS = 2 * 1024 * 1024


def margin(dim: int) -> float:
    """Return by how much a dot product of two unit vectors in float32 may differ from what `exact` gives.

    A sum of `dim` products, in any order, is wrong by less than ``dim * 2**-24`` times their absolute sum, which is at
    most 1 (Higham, *Accuracy and Stability of Numerical Algorithms*, 3.1). Scaling and rounding add a few units, and
    all of it is doubled.
    """
    return float((dim + 8) * 2.0**-23)


def exact(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Return the cosine of each row of `a` and the row of `b` beside it, computed in float64 and rounded once.

    Equal vectors, also if scaled, have the cosine 1, and a pair has the same one whatever it is computed beside.

    Args:
        a: ``(n, dim)``, floats.
        b: ``(n, dim)``, or ``(dim,)`` for all.

    Returns:
        ``(n,) float32``, -1 to 1.
    """
    found = np.empty(len(a), np.float32)
    step = max(1, EXACT_NUMBERS // a.shape[1])
    for start in range(0, len(a), step):
        x = a[start : start + step].astype(np.float64)
        y = (b if b.ndim == 1 else b[start : start + step]).astype(np.float64)
        lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        found[start : start + step] = np.clip((x * y).sum(-1) / lengths, -1, 1)
    return found
