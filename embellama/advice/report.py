"""Show what `embellama bench` measured: as a table, as JSON, as a chart.

bench.py ──► Report ──► table, chart, msgspec.json.encode
"""

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from embellama.errors import ConfigError

# The loss drawn where 1 - cosine is 0: float32 cannot tell less from 1.
NO_LOSS = 1e-7


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one file.

    Attributes:
        name: Its format where one file was made into several; else the file's name and its format.
        format: The type of its weights.
        path: The file; a made one is gone by now.
        n_bytes: Size of its weights.
        failed: Why there is nothing below, or "".
        texts_per_s: Short texts embedded in a second, with a context for each core.
        p50_ms: Milliseconds for one short text alone on all cores.
        worst_cosine: Least cosine of a text's vector to the most precise file's.
        mean_cosine: Mean cosine.
        max_batch_tokens: Most tokens to compute together, as measured for it.
        compute: What computes its layers, likewise: ``llama``, or the instruction set of our kernels.
    """

    name: str
    format: str = ""
    path: str
    n_bytes: int = 0
    failed: str = ""
    texts_per_s: float = 0
    p50_ms: float = 0
    worst_cosine: float = 0
    mean_cosine: float = 0
    max_batch_tokens: int = 0
    compute: str = ""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The best format with other settings; speeds as in `Row`."""

    num_workers: int
    n_threads: int  # 0 for auto
    texts_per_s: float
    p50_ms: float


class Report(msgspec.Struct, frozen=True):
    """All measurements of one `embellama bench`, and its advice.

    Attributes:
        cpu: Name of the machine's CPU.
        n_cores: Cores it may use.
        n_texts: Texts the cosines are over.
        reference: The row whose vectors the others are compared with.
        rows: In the order of the files, or most precise first.
        settings: Of the row the advice names first.
        advice: One sentence.
    """

    cpu: str
    n_cores: int
    n_texts: int
    reference: str
    rows: list[Row]
    settings: list[Setting]
    advice: str


def table(report: Report) -> str:
    """Write a report as text, for people."""
    lines = [f"{report.cpu}, {report.n_cores} cores; cosines to {report.reference}, over {report.n_texts} texts", ""]
    cells = [["format", "MB", "texts/s", "p50 ms", "worst cosine", "mean cosine", "batch tokens", "computed with"]]
    for row in report.rows:
        if row.failed:
            cells.append([row.name])
            continue
        cosines = [f"{row.worst_cosine:.6f}", f"{row.mean_cosine:.6f}"]
        speed = [f"{row.n_bytes / 1e6:.1f}", f"{row.texts_per_s:.0f}", f"{row.p50_ms:.1f}"]
        cells.append([row.name, *speed, *cosines, str(row.max_batch_tokens), row.compute])
    written = _columns(cells)
    lines += [
        written[0],
        *(f"{line}  {_why(row)}".rstrip() for line, row in zip(written[1:], report.rows, strict=True)),
    ]
    cells = [["workers", "threads", "texts/s", "p50 ms"]]
    for setting in report.settings:
        threads = str(setting.n_threads or "auto")
        cells.append([str(setting.num_workers), threads, f"{setting.texts_per_s:.0f}", f"{setting.p50_ms:.1f}"])
    return "\n".join([*lines, "", *_columns(cells), "", report.advice])


def _why(row: Row) -> str:
    return f"failed: {row.failed}" if row.failed else ""


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in itertools.zip_longest(*cells, fillvalue="")]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in cells
    ]


def check_chart(path: str) -> None:
    """Raise `ConfigError` if no chart can be written to `path`, before anything is measured."""
    if Path(path).suffix not in (".svg", ".png"):
        raise ConfigError(f"chart is {path!r}: its name must end in .svg or .png")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"chart is {path!r}: there is no such folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a chart needs matplotlib, which is not installed: pip install 'embellama[bench]'")


def chart(report: Report, path: str) -> None:
    """Draw speed against size and against fidelity, as SVG or PNG."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if not row.failed]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    by_size = figure.add_subplot(1, 2, 1)
    by_fidelity = figure.add_subplot(1, 2, 2, sharey=by_size)
    losses = [max(1 - row.worst_cosine, NO_LOSS) for row in rows]
    for axes, values in ((by_size, [row.n_bytes / 1e6 for row in rows]), (by_fidelity, losses)):
        axes.scatter(values, [row.texts_per_s for row in rows])
        for row, value in zip(rows, values, strict=True):
            axes.annotate(row.name, (value, row.texts_per_s), (0, 6), textcoords="offset points", ha="center")
        axes.grid(alpha=0.3)
    by_size.set(xlabel="size of the weights (MB)", xlim=(0, 1.3 * max(row.n_bytes / 1e6 for row in rows)))
    by_size.set(ylabel="speed (short texts/s)", ylim=(0, 1.2 * max(row.texts_per_s for row in rows)))
    by_fidelity.set(xlabel="loss, 1 − worst cosine (log)", xscale="log", xlim=(NO_LOSS / 10, 10 * max(losses)))
    figure.suptitle(f"{report.cpu}, {report.n_cores} cores; loss against {report.reference}, {NO_LOSS:g} if none")
    figure.savefig(path)
