"""What was found out about this machine, kept so that it is found out once.

amx, tuning ──► CachedMeasurement.read, .write ──► the user's cache folder: on Linux ~/.cache/embellama/KIND-KEY, or
                                                   $XDG_CACHE_HOME/embellama/KIND-KEY

A measurement holds for one build of llama.cpp on one kind of CPU, and for whatever else its key says.
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from embellama.llama import c_api

logger = logging.getLogger("embellama.machine.measurements")


class CachedMeasurement:
    """A result measured on this machine, one word, in a file of its own.

    Attributes:
        path: The file.
    """

    def __init__(self, kind: str, *key: object):
        """Name a measurement of some `kind` that holds for `key`, whose parts are told apart by their `repr`."""
        library = Path(str(c_api._lib._name))
        builds = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in library.parent.iterdir())
        known = repr((builds, c_api.llama_print_system_info(), *key))
        import platformdirs  # here, because `import embellama` need not wait for it

        cache = platformdirs.user_cache_path("embellama", appauthor=False)
        self.path = cache / f"{kind}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"

    def read(self) -> str | None:
        """Return what was measured, or None if nothing was."""
        try:
            return self.path.read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def write(self, word: str) -> None:
        """Keep a result; where it cannot be written, it will be measured again."""
        own = self.path.with_name(f"{self.path.name}.{os.getpid()}")  # renamed whole: others may be reading
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(word)
            own.replace(self.path)
        except OSError as error:
            logger.debug("%s is not kept: %s", self.path, error)
            with contextlib.suppress(OSError):
                own.unlink()
