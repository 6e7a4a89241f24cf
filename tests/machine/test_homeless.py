"""Users without a home folder, and without a name."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import BIN, ROOT

PROGRAM = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from embellama import EmbeddingEngine, EngineConfig
for name in ("a", "b"):
    with EmbeddingEngine(EngineConfig(model_path={path!r}, model_name=name, num_workers=1)) as engine:
        print(engine.embed(name, "red").shape)
"""


# As a user id without a name, that may read what root may: this Python, and the model.
AS_NOBODY = (
    *("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
)
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'server'}"}


def test_a_user_without_a_home_and_a_name_measures_each_time_and_is_told_once(tiny_path: str) -> None:
    command = [*AS_NOBODY, sys.executable, "-c", PROGRAM.format(path=tiny_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=ENVIRONMENT)
    assert result.stdout == "(32,)\n(32,)\n", result.stderr
    assert result.stderr.count("this user has no home") == 1
    assert not Path("/~").exists()


def test_a_server_starts_for_a_user_without_a_home_and_a_name(tiny_path: str) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--port", "0")
    command = [*AS_NOBODY, str(BIN / "embellama-server"), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/", env=ENVIRONMENT) as server:
        assert server.stderr
        lines = []
        for line in server.stderr:
            lines.append(line)
            if "ready in" in line:
                break
        server.terminate()
        server.communicate(timeout=30)
    assert server.returncode == 0
    assert sum("this user has no home" in line for line in lines) == 1
