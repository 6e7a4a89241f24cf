"""What the commands over an output of `embellama bulk` share: the errors that they may end with."""

import contextlib
import errno
from collections.abc import Iterator

import click

from embellama.errors import EmbellamaError


@contextlib.contextmanager
def telling_errors() -> Iterator[None]:
    """End the command with one line where an output cannot be read, or a temporary file not be written."""
    try:
        yield
    except EmbellamaError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # whoever read what is printed has gone; click ends the command
        raise click.ClickException(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
