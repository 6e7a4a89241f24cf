"""Keep what was measured on this machine in the cache folder, so that it is measured once.

amx, tuning ──► CachedMeasurement.read, .write ──► the user's cache folder: on Linux ~/.cache/embellama/KIND-KEY, or
                                                   $XDG_CACHE_HOME/embellama/KIND-KEY

A measurement holds for one build of llama.cpp and of our kernels, for one kind of CPU, and for whatever else its key
says.
"""

import contextlib
import functools
import hashlib
import logging
import os
from pathlib import Path

from embellama import kernels
from embellama.llama import c_api

logger = logging.getLogger("embellama.machine.measurements")


class CachedMeasurement:
    """The result of one measurement, a short text, kept in a file of its own.

    Attributes:
        path: The file, which may not exist yet; None where this user has no folder for it.
    """

    def __init__(self, kind: str, *key: object):
        """Name a measurement of some `kind` that holds for `key`, whose parts are told apart by their `repr`."""
        library = Path(str(c_api._lib._name))
        files = [*library.parent.iterdir(), *filter(Path.exists, [kernels.PATH])]
        builds = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        known = repr((builds, c_api.llama_print_system_info(), *key))
        cache = _cache_folder()
        self.path = cache and cache / f"{kind}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"

    def read(self) -> str | None:
        """Return the result that was kept, or None if there is none."""
        try:
            return self.path.read_text("utf-8") if self.path else None
        except (OSError, UnicodeDecodeError):
            return None

    def write(self, result: str) -> None:
        """Keep a result; where it cannot be written, it will be measured again."""
        if self.path is None:
            return
        own = self.path.with_name(f"{self.path.name}.{os.getpid()}")  # renamed whole: others may be reading
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(result, "utf-8")
            own.replace(self.path)
        except OSError as error:
            logger.debug("%s is not kept: %s", self.path, error)
            with contextlib.suppress(OSError):
                own.unlink()


def _cache_folder() -> Path | None:
    import platformdirs  # here, because `import embellama` need not wait for it

    with contextlib.suppress(RuntimeError, KeyError):  # no HOME, and a user id without a name
        folder = platformdirs.user_cache_path("embellama", appauthor=False)
        if folder.is_absolute():  # else it is a "~" that nobody knows
            return folder
    _warn_once("this user has no home: what is measured on this machine is not kept, but measured each time")
    return None


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
