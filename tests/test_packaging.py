"""What an installation gets."""

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, run, tracked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: what an earlier build left in build/ would come along.
    for path in tracked("embellama", "server", "pyproject.toml", "README.md", "LICENSE"):
        copy = folder / "tree" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, folder / "tree")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("embellama-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_both_packages_their_command_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in tracked("embellama")}
    expected |= {str(path.relative_to(ROOT / "server")) for path in tracked("server/embellama_server")}
    assert found == expected
    assert {"embellama/py.typed", "embellama/text/prompts.toml", "embellama_server/py.typed"} <= found


def test_the_wheel_gives_both_commands_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(entry_points).decode().split() == [
        "[console_scripts]",
        "embellama",
        "=",
        "embellama.cli.main:main",
        "embellama-server",
        "=",
        "embellama_server.cli:main",
    ]
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_library_alone_needs_no_server_package(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    required = [line for line in wheel.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
    alone = " ".join(line for line in required if "extra ==" not in line)
    for package in ("starlette", "uvicorn", "orjson", "uvloop", "httptools", "psutil"):
        assert package not in alone
        assert any(package in line for line in required)


@pytest.mark.parametrize("module", ["embellama", "embellama.cli.main", "embellama_server.workers.worker"])
def test_importing_it_imports_no_http(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('starlette', 'uvicorn', 'httptools') if m in sys.modules])"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"


def test_the_server_command_says_what_is_missing_without_its_extra(tiny_path: str) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from embellama_server.cli import main; main()"
    result = run(sys.executable, "-c", code, "--model-path", tiny_path)
    assert result.returncode == 1
    assert result.stderr == "Error: uvicorn is not installed: pip install 'embellama[server]'\n"


@pytest.mark.parametrize("name", ["embellama", "embellama-server"])
def test_launchers_run_from_anywhere_through_a_link(name: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(ROOT / "bin" / name)
    result = run(link, "--version", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"{name}, version 0.1.0\n")


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_launcher_adds_no_model_to_those_of_a_file(by: str, tmp_path: Path) -> None:
    file = tmp_path / "embellama.toml"
    file.write_text('model_path = "no-such-file.gguf"\n')
    flags = ["--config", str(file)] if by == "flag" else []
    variables = {} if flags else {"EMBELLAMA_CONFIG": str(file)}
    result = run(ROOT / "bin" / "embellama-server", *flags, env={**os.environ, **variables})
    assert result.returncode != 0
    assert "no-such-file.gguf" in result.stderr
