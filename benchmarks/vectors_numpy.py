"""Search or compare the rows of an `.npy` with NumPy alone; what `benchmarks.vectors` puts beside the commands.

python -m benchmarks.vectors_numpy FILE N_QUERIES      # 0: compare all rows with all
"""

import sys

import numpy as np

from benchmarks.vectors import TOP_K, unit

# So many rows are compared with all others at once: a product of all with all would not fit.
STEP = 2048


def main() -> None:
    rows = np.load(sys.argv[1])
    n_queries = int(sys.argv[2])
    if n_queries:
        queries = unit(np.random.default_rng(1).standard_normal((n_queries, rows.shape[1]))).astype(np.float32)
        near = rows @ queries.T
        best = np.argpartition(near, -TOP_K, axis=0)[-TOP_K:]
        print(len(best))
        return
    n_near = 0
    for start in range(0, len(rows), STEP):
        n_near += int((rows[start : start + STEP] @ rows.T >= 0.95).sum())
    print(n_near)


if __name__ == "__main__":
    main()
