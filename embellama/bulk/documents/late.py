"""Compute chunks with the text around them: jobs of whole windows, of which each gives a vector for each chunk.

LateChunks of a part ── window_jobs: by window ──► grouped ──► one job of several windows ──► vectors of chunks
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from embellama.batch import RowKind, Rows
from embellama.bulk.rows import LateChunk
from embellama.errors import EmptyInput, InputError
from embellama.jobs import Job, Jobs
from embellama.options import ChunkOptions, OutputOptions, Spans
from embellama.results import Chunks

# Tokens of windows that are computed together. More cost memory, as each token has a vector: 100 MB at 768 dimensions;
# fewer leave threads idle at the end.
TOKENS_AT_ONCE = 32 * 1024


class WindowJob(NamedTuple):
    """A window to compute.

    numbers: Numbers of its chunks among those of the part.
    n_tokens: Tokens of each chunk.
    job: Computes them.
    """

    numbers: list[int]
    n_tokens: list[int]
    job: Job[Chunks]


def window_jobs(
    jobs: Jobs, chunks: Sequence[LateChunk], options: OutputOptions
) -> Iterator[WindowJob | tuple[list[int], InputError]]:
    """Make a job for each window, or tell the error of chunks that cannot be computed."""
    windows: dict[str, list[int]] = {}
    for number, chunk in enumerate(chunks):
        windows.setdefault(chunk.window, []).append(number)
    for window, numbers in windows.items():
        try:
            spans = jobs.tokenizer.within(window, [(chunks[i].start, chunks[i].stop) for i in numbers]).tolist()
            good = [(i, start, stop) for i, (start, stop) in zip(numbers, spans, strict=True) if start < stop]
            if without := [i for i in numbers if i not in {each[0] for each in good}]:
                yield without, EmptyInput(0)
            if good:
                token_spans = [(start, stop) for _, start, stop in good]
                job = jobs.chunks(window, _with_spans(options, token_spans))
                yield WindowJob([i for i, _, _ in good], [stop - start for start, stop in token_spans], job)
        except InputError as error:
            yield numbers, error


def grouped(windows: Sequence[WindowJob]) -> Iterator[list[WindowJob]]:
    """Group windows in order, so that a group has some `TOKENS_AT_ONCE`."""
    group: list[WindowJob] = []
    n_tokens = 0
    for window in windows:
        n_window = len(window.job.tokens[0])
        if group and n_tokens + n_window > TOKENS_AT_ONCE:
            yield group
            group, n_tokens = [], 0
        group.append(window)
        n_tokens += n_window
    if group:
        yield group


def joined(windows: Sequence[WindowJob]) -> Job[list[Chunks]]:
    """Make one job of several windows."""
    tokens = [window.job.tokens[0] for window in windows]

    def finish(rows: Rows) -> list[Chunks]:
        found, start = [], 0
        for window, ids in zip(windows, tokens, strict=True):
            found.append(window.job.finish(rows[start : start + len(ids)]))
            start += len(ids)
        return found

    return Job(tokens, finish, RowKind.TOKEN)


def _with_spans(options: OutputOptions, spans: Spans) -> ChunkOptions:
    given: dict[str, Any] = {name: getattr(options, name) for name in OutputOptions.__struct_fields__}
    return ChunkOptions(**given, token_spans=spans)
