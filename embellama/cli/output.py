"""What commands print, how they end, and the one line that says why something cannot be printed.

Command, the class of every command ── done ─► 0 ── wrong usage ─► 2 ── any other error ─► one line, 1 ── Ctrl-C ─► 130
write_line, json_line ──► standard output; a reader that has gone ends the command without a word
"""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

# What a shell reports of a program that SIGINT has ended.
INTERRUPTED = 128 + signal.SIGINT

# What Python makes of the bytes of an argument or a file name that are not UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")


class Command(click.Command):
    """A command that ends with one line, never with a traceback, where it is interrupted or cannot print."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and end the process, unless `standalone_mode` is off."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            sys.exit(super().main(args, prog_name, complete_var, False, **extra))
        except click.ClickException as error:
            with contextlib.suppress(OSError):  # standard error is full, too
                error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # what Python still has to do may be interrupted
            sys.exit(INTERRUPTED)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the arguments; `--help` and `--version` print here."""
        with _printing():
            try:
                return super().make_context(*args, **options)
            except click.exceptions.Exit:
                check_output()
                raise


class Group(Command, click.Group):
    """A command of commands."""


def check_output() -> None:
    """Raise `click.ClickException` if nothing can be printed: standard output is closed."""
    if sys.stdout is None:
        raise click.ClickException("the output cannot be written: standard output is closed")


def write_line(line: str) -> None:
    """Print a line on standard output, with escapes for what its encoding does not have.

    Where it cannot be written, the command ends with one line and exit status 1; where its reader has gone, without.
    """
    check_output()
    with _printing():
        click.echo(printable(line).encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def json_line(value: object) -> str:
    """Write a struct, or a list of them, as JSON; names of files that are not UTF-8 with escapes."""
    return msgspec.json.encode(_printable(msgspec.to_builtins(value))).decode()


def printable(text: str) -> str:
    r"""Return a text with escapes, such as ``\xe9``, for the bytes that were not UTF-8."""
    return _SURROGATE.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(key): _printable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # click ends the command
        # Or Python would try once more to write at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from None
