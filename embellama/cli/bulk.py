"""`embellama bulk`: embed the rows of files into a file."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from embellama.bulk.cluster import ClusterConfig
from embellama.bulk.job import BulkJob
from embellama.bulk.manifest import Manifest
from embellama.bulk.progress import progress
from embellama.bulk.run import Summary, run
from embellama.cli.flags import call_options, config_options
from embellama.cli.output import Command, json_line
from embellama.config import CACHE_SETTINGS
from embellama.errors import Unavailable
from embellama.remote.config import RemoteConfig

# The exit status where more rows failed than were allowed to.
TOO_MANY_FAILED = 3


@click.command(cls=Command)
@config_options(ClusterConfig, RemoteConfig, file=True, unused=CACHE_SETTINGS)
@call_options(BulkJob, file="job")
@click.argument("inputs", nargs=-1, metavar="INPUT…")
def bulk(config: ClusterConfig | RemoteConfig, options: BulkJob, inputs: Sequence[str]) -> None:
    """Embed each row of INPUTs, files, folders or - for standard input, and write the vectors to a file.

    CSV, JSON lines, plain lines, Parquet and Arrow, also compressed with gzip or zstd; PDFs by pages, and folders of
    .txt, .md and .pdf. A row that cannot be embedded fails by itself. A run that was ended goes on with --resume. A
    model computes (--model-path), in this process or in actors of a Ray cluster (--ray); or other servers do (--url).
    """
    job = msgspec.structs.replace(options, inputs=tuple(inputs)) if inputs else options
    try:
        summary = run(job, config, progress())
    except Unavailable as error:
        raise click.ClickException(f"{error}{_hint(job)}") from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or job.output}: {error.strerror or error}{_hint(job)}") from error
    if job.summary:
        _write_summary(job.summary, summary)
    click.echo(_told(summary), err=True)
    if summary.failure_rate > job.allowed_failure_rate:
        click.get_current_context().exit(TOO_MANY_FAILED)


def _hint(job: BulkJob) -> str:
    """Say that the run can be gone on with, if it was begun."""
    was_begun = job.output != "-" and Manifest.path(Path(job.output)).exists()
    return "; what was written is kept, and --resume goes on" if was_begun else ""


def _write_summary(path: str, summary: Summary) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json_line(summary) + "\n")
    except OSError as error:
        reason = f"the summary cannot be written: {error.strerror or error}"
        raise click.ClickException(f"{path}: {reason}; {summary.output} is complete") from error


def _told(summary: Summary) -> str:
    counts = summary.counts
    failed = f"{counts.failed} failed"
    if counts.failures:
        failed += f" ({', '.join(f'{code}: {n}' for code, n in counts.failures.items())})"
    told = [f"{counts.rows} rows", failed, f"{counts.tokens} tokens", f"{summary.seconds:.1f} s"]
    told += [f"{counts.skipped} empty ones left out"] if counts.skipped else []
    told += [f"{counts.cut} cut"] if counts.cut else []
    told += [f"{summary.resumed_at} were there already"] if summary.resumed_at else []
    return f"{summary.output}: {', '.join(told)}"
