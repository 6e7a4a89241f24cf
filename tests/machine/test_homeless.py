"""Users without a home folder, and without a name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


# In a file system of its own that nobody can write to, but for an empty folder. Not /tmp: this clone may be there.
READ_ONLY = 'mount --bind / / && mount -o remount,ro,bind / && mount -t tmpfs none /mnt && TMPDIR=/mnt exec "$@"'

# What Kubernetes sets for a Service named embellama.
SERVICE = {"EMBELLAMA_PORT": "tcp://10.96.0.12:8000", "EMBELLAMA_SERVICE_HOST": "10.96.0.12"}


@pytest.mark.model
@pytest.mark.parametrize(
    "around", [(), ("unshare", "-m", "bash", "-c", READ_ONLY, "-")], ids=["root", "read-only root"]
)
def test_a_server_starts_for_a_user_without_a_home_and_a_name(model_path: str, around: tuple[str, ...]) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--port", "0")
    command = [*around, *AS_NOBODY, str(BIN / "embellama-server"), *flags]
    environment = ENVIRONMENT | SERVICE
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/", env=environment) as server:
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
