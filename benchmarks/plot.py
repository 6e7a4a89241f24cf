"""Draw how throughput and p99 grow with the number of clients, from what `benchmarks.peers curve --save` wrote.

    ../peers/bin/python benchmarks/plot.py benchmarks/results/DATE-peers-CPU.json docs/images/clients.svg

Needs matplotlib, and nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
# The same figures give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "embellama", "font.size": 10})

from matplotlib import pyplot  # noqa: E402 - after the back end is chosen


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    result = json.loads(source.read_text())
    figure, (throughput, latency) = pyplot.subplots(1, 2, figsize=(9, 4))
    draw(throughput, result["curve"], "texts_per_s", "texts a second")
    draw(latency, result["curve"], "p99_ms", "p99 latency, ms")
    throughput.set_ylim(bottom=0)
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    throughput.legend(frameon=False, loc="lower right")
    figure.text(0.5, 0.01, caption(result), ha="center", fontsize=8, color="0.3")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def draw(axes: Any, curve: dict[str, Any], key: str, label: str) -> None:
    for (name, rows), marker in zip(curve["medians"].items(), "os", strict=True):
        axes.plot(curve["clients"], [row[key] for row in rows], marker=marker, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(curve["clients"], [str(n) for n in curve["clients"]])
    axes.set_xlabel("clients, one short text each")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def caption(result: dict[str, Any]) -> str:
    machine, curve = result["machine"], result["curve"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load generator included; {machine['model']}; "
        f"medians of {curve['rounds']} rounds of {curve['seconds']:g} s.\n"
        f"embellama-server --workers 2; llama-server --embeddings {curve['llama_flags']}"
    )


if __name__ == "__main__":
    main()
