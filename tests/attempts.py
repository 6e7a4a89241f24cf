"""Load files that may end the process, each in a process of its own.

files ──► python -m tests.attempts ──► a fork for each: load it, embed ──► {file name: what came of it}
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from embellama import EmbeddingEngine, EmbellamaError, EngineConfig
from tests.conftest import ROOT, run

N_BYTES = 8 << 30  # of address space: more is as good as a crash
SECONDS = 30


def attempts(paths: Iterable[Path], **settings: object) -> dict[str, str]:
    """Load each file and embed with it.

    Returns:
        By file name: ``fine``, or the error's type and message; ``killed`` and a number if a signal ended the process.
    """
    told = run(sys.executable, "-m", "tests.attempts", json.dumps(settings), *paths, cwd=ROOT)
    assert told.returncode == 0, told.stderr
    return {Path(path).name: outcome for path, outcome in json.loads(told.stdout).items()}


def _attempt(path: str, settings: dict[str, object]) -> str:
    try:
        with EmbeddingEngine(EngineConfig(model_path=path, num_workers=1, n_threads=1, **settings)) as engine:  # type: ignore[arg-type]
            if engine.model_info().pooling == "rank":
                engine.rerank(None, "red", ["green blue"])
            else:
                engine.embed_batch(None, ["red green", "blue one two " * 10])
    except EmbellamaError as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def _outcome(path: str, settings: dict[str, object]) -> str:
    reader, writer = os.pipe()
    # llama.cpp has computed nothing here yet, so there are no threads of its own that a fork would lose.
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (N_BYTES, N_BYTES))
            signal.alarm(SECONDS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(writer, _attempt(path, settings).encode()[:60_000])
        except BaseException as error:
            os.write(writer, f"unexpected {error!r}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(pid, 0)[1]
    return said if status == 0 else f"killed {os.waitstatus_to_exitcode(status)}"


if __name__ == "__main__":
    os.environ["GGML_NO_BACKTRACE"] = "1"  # on abort, ggml would start a debugger
    print(json.dumps({path: _outcome(path, json.loads(sys.argv[1])) for path in sys.argv[2:]}))
