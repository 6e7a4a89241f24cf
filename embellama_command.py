"""The `embellama` command, from its first moment: SIGINT ends it without a traceback while its modules are imported.

It stands beside the package, because importing a module of the package first imports all of that.
"""

import os
import signal
from types import FrameType


def main() -> None:
    """Import the command and run it."""
    catches = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored
    if catches:
        signal.signal(signal.SIGINT, _end)
    from embellama.cli.main import main as run

    if catches:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _end(_: int, __: FrameType | None) -> None:
    os._exit(128 + signal.SIGINT)
