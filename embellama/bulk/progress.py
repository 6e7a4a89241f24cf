"""How far a run is: a bar where somebody watches, a line now and then where not; both on standard error.

run ── update(what was done, share of the inputs) ──► Bar (rich), or Log
"""

import sys
import time
from types import TracebackType

from embellama.bulk.extra import extra
from embellama.bulk.manifest import Counts

# Seconds between two lines of a log.
LINE_S = 10.0


class Log:
    """Writes a line every few seconds."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._first_share: float | None = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def note(self, line: str) -> None:
        """Tell what is worth knowing before the work."""
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)

    def update(self, done: Counts, share: float | None) -> None:
        """Tell what was done in this run, and which share of the inputs was read, if that is known."""
        text = self._text(done, share)
        if sys.stderr is not None and time.monotonic() - self._said >= LINE_S:
            self._said = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def _text(self, done: Counts, share: float | None) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        parts = [f"{done.rows} rows", f"{done.rows / seconds:.0f}/s", f"{done.tokens} tokens", f"{done.failed} failed"]
        if share is not None:
            self._first_share = share if self._first_share is None else self._first_share
            if gained := share - self._first_share:
                parts.append(f"{share:.0%}, {_duration(seconds * (1 - share) / gained)} left")
        return ", ".join(parts)


class Bar(Log):
    """Draws a bar."""

    def __init__(self) -> None:
        super().__init__()
        rich, console = extra("rich.progress", "progress bars"), extra("rich.console", "progress bars")
        columns = rich.BarColumn(), rich.TextColumn("{task.description}")
        self._bar = rich.Progress(*columns, console=console.Console(stderr=True))
        self._task = self._bar.add_task("loading", total=None)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, line: str) -> None:
        """Tell what is worth knowing before the work."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, done: Counts, share: float | None) -> None:
        """Draw it anew."""
        total = None if share is None else 1.0
        self._bar.update(self._task, total=total, completed=share or 0, description=self._text(done, share))


def progress() -> Log:
    """Return a bar where standard error is a terminal, else a log."""
    return Bar() if sys.stderr is not None and sys.stderr.isatty() else Log()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
