"""What each output dtype, and fewer dimensions, cost in recall: recall@10 against exact float32 cosine search.

    .venv/bin/python -m benchmarks.recall [--save]

The texts are the sentences of benchmarks/texts.py in their fixed order, each different: the first 500 are queries, the
next 500 only calibrate int8, the rest are documents. Recall@10 is the share of a query's ten nearest documents, by
float32, that are also among its ten nearest as written; queries and documents are written alike. ± is two standard
errors of the mean over the queries.
"""

import argparse
import datetime
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import texts
from benchmarks.compare import ROOT, machine
from embellama import EmbeddingEngine, EngineConfig
from embellama.batch import Rows
from embellama.outputs import calibrate, cut, quantize
from embellama.similarity import dot, hamming

N_QUERIES = N_CALIBRATE = 500
N_NEAREST = 10
N_RESCORED = 40


class Search(NamedTuple):
    """One way to write vectors, and what a search over them finds."""

    name: str
    n_bytes: int
    nearest: NDArray[np.intp]


def main() -> None:
    parser = argparse.ArgumentParser(description="What each output dtype, and fewer dimensions, cost in recall.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-recall-CPU.json and .md")
    options = parser.parse_args()

    with EmbeddingEngine(EngineConfig(model_path=options.model_path, model_name="model")) as engine:
        rows = engine.embed_batch("model", texts.sentences())
    queries, sample, documents = np.split(rows, [N_QUERIES, N_QUERIES + N_CALIBRATE])
    limit = calibrate(sample)
    exact = nearest(dot(queries, documents))
    result = {
        "machine": machine(options.model_path),
        "queries": len(queries),
        "documents": len(documents),
        "dim": rows.shape[1],
        "calibrated_limit": round(limit, 4),
        "recall_at_10": [
            {"vectors": search.name, "bytes": search.n_bytes, **recall(search.nearest, exact)}
            for search in searches(queries, documents, sample, limit)
        ],
    }
    table = render(result)
    print(table)
    if options.save:
        save(result, table)


def searches(queries: Rows, documents: Rows, sample: Rows, limit: float) -> Iterator[Search]:
    """Search in every way the table has a row for."""

    def by_dot(name: str, a: NDArray[Any], b: NDArray[Any], n_bytes: int | None = None) -> Search:
        return Search(name, n_bytes or b[0].nbytes, nearest(dot(a, b)))

    def levels(dtype: Literal["int8", "uint8"], limit: float) -> tuple[NDArray[Any], NDArray[Any]]:
        a, b = quantize(queries, dtype, limit), quantize(documents, dtype, limit)
        return (a, b) if dtype == "int8" else (a.astype(np.int16) - 128, b.astype(np.int16) - 128)

    dim = queries.shape[1]
    yield by_dot("float32", queries, documents)
    yield by_dot("float16", quantize(queries, "float16"), quantize(documents, "float16"))
    yield by_dot(f"int8, limit {limit:.3f} (calibrated)", *levels("int8", limit))
    yield by_dot("int8, limit 1 (default)", *levels("int8", 1))
    yield by_dot(f"uint8, limit {limit:.3f} (calibrated)", *levels("uint8", limit), n_bytes=dim)
    yield by_dot("uint8, limit 1 (default)", *levels("uint8", 1), n_bytes=dim)
    low, high = sample.min(axis=0), sample.max(axis=0)
    a, b = own_ranges(queries, low, high), own_ranges(documents, low, high)
    yield by_dot("int8, a range for each dimension (not offered)", a, b)
    a, b = (low + (rows + 128.5) * (high - low) / 255 for rows in (a, b))
    yield by_dot("the same, turned back into floats to compare", a, b, n_bytes=dim)
    for dtype in ("binary", "ubinary"):
        bits = quantize(documents, dtype)
        differ = hamming(quantize(queries, dtype), bits)
        yield Search(dtype, bits[0].nbytes, nearest(-differ))
        if dtype == "binary":
            yield Search(
                f"binary, the best {N_RESCORED} scored again with float32",
                bits[0].nbytes + documents[0].nbytes,
                rescored(differ, queries, documents),
            )
    for dimensions in (256, 128, 64):
        yield by_dot(f"float32, {dimensions} dimensions", cut(queries, dimensions), cut(documents, dimensions))


def nearest(scores: NDArray[Any], n: int = N_NEAREST) -> NDArray[np.intp]:
    """Return the documents with the highest scores, ``(n_queries, n)``, best first; of equals, the first in order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :n]


def rescored(differ: NDArray[np.int64], queries: Rows, documents: Rows) -> NDArray[np.intp]:
    """Take the documents that differ in the fewest bits, and order those by float32."""
    candidates = nearest(-differ, N_RESCORED)
    scores = np.take_along_axis(dot(queries, documents), candidates, axis=1)
    return np.take_along_axis(candidates, nearest(scores), axis=1)


def own_ranges(rows: Rows, low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.int8]:
    """Write int8 as sentence-transformers does: 256 levels between each dimension's own least and largest value."""
    return (np.clip((rows - low) / (high - low) * 255 // 1, 0, 255) - 128).astype(np.int8)  # type: ignore[no-any-return]


def recall(got: NDArray[np.intp], exact: NDArray[np.intp]) -> dict[str, float]:
    """Return the mean over the queries, and two standard errors of it."""
    shares = [len({*a} & {*b}) / len(b) for a, b in zip(got.tolist(), exact.tolist(), strict=True)]
    return {
        "recall": round(float(np.mean(shares)), 4),
        "two_standard_errors": round(2 * float(np.std(shares)) / len(shares) ** 0.5, 4),
    }


def render(result: dict[str, Any]) -> str:
    what = result["machine"]
    lines = [
        f"{what['cpu']}; {what['model']}, {result['dim']} dimensions; Python {what['python']}; "
        f"{result['queries']} queries, {result['documents']} documents.",
        "",
        "| vectors | bytes | recall@10 | ± |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['vectors']} | {row['bytes']} | {row['recall']:.3f} | {row['two_standard_errors']:.3f} |"
        for row in result["recall_at_10"]
    ]
    return "\n".join(lines) + "\n"


def save(result: dict[str, Any], table: str) -> None:
    cpu = re.sub(r"[^a-z0-9]+", "-", result["machine"]["cpu"].lower()).strip("-")
    base = ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-recall-{cpu}"
    base.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    base.with_suffix(".md").write_text(table)
    print(f"saved {base.relative_to(ROOT)}.md and .json")


if __name__ == "__main__":
    main()
