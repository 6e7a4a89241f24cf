"""What commands print, and the one line that says why it cannot be printed."""

import errno
import os

import click


def write_line(line: str | bytes) -> None:
    """Print a line on standard output; a full disk ends the command with one line and exit status 1.

    A reader that has gone ends it too, without a word: click does that.
    """
    try:
        click.echo(line)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # Or Python would try once more to write at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from None
