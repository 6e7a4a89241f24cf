"""What an installation gets."""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, run, tracked

HAS_KERNELS = (sys.platform, platform.machine()) == ("linux", "x86_64")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy(tmp_path)


def copy(folder: Path) -> Path:
    """Copy what git tracks: what an earlier build left in build/ would come along."""
    files = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
    for path in tracked("embellama", "server", "native", *files):
        copy = folder / "tree" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder / "tree"


def build(source: Path, **environment: str) -> tuple[zipfile.ZipFile, "subprocess.CompletedProcess[str]"]:
    """Have pip make a wheel; return it, and what pip said."""
    command = (sys.executable, "-m", "pip", "--verbose", "wheel", "--no-deps", "--wheel-dir", source.parent, source)
    built = run(*command, env=os.environ | environment)
    assert built.returncode == 0, built.stderr
    (path,) = source.parent.glob("embellama-*.whl")
    return zipfile.ZipFile(path), built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(copy(tmp_path_factory.mktemp("wheel")))[0]


def test_the_wheel_holds_both_packages_their_command_the_kernels_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in tracked("embellama")}
    expected |= {str(path.relative_to(ROOT / "server")) for path in tracked("server/embellama_server")}
    expected |= {"embellama/libembellama_compute.so"} if HAS_KERNELS else set()
    assert found == expected
    assert {"embellama/py.typed", "embellama/text/prompts.toml", "embellama_server/py.typed"} <= found


def test_a_wheel_with_kernels_is_for_this_platform_and_any_python(wheel: zipfile.ZipFile) -> None:
    (facts,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
    assert ("Root-Is-Purelib: false" in facts) == HAS_KERNELS
    assert ("Tag: py3-none-linux_x86_64" if HAS_KERNELS else "Tag: py3-none-any") in facts


def test_a_wheel_that_is_built_without_a_compiler_has_no_kernels_and_is_for_all(tree: Path, tmp_path: Path) -> None:
    (tree / "build" / "lib" / "embellama").mkdir(parents=True)
    (tree / "build" / "lib" / "embellama" / "libembellama_compute.so").write_text("of an earlier build")
    wheel, built = build(tree, PATH=str(tmp_path), CXX="")
    assert "embellama/libembellama_compute.so" not in wheel.namelist()
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    [line] = [line.strip() for line in (built.stdout + built.stderr).splitlines() if "kernels:" in line]
    assert not HAS_KERNELS or line == "kernels: not built: needs a C++ compiler (on Debian: apt install g++)"


def test_the_source_archive_has_all_that_a_wheel_is_built_of(tree: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    assert run(sys.executable, "-c", code, tmp_path, cwd=tree).returncode == 0
    (path,) = tmp_path.glob("embellama-*.tar.gz")
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert found >= {str(file.relative_to(tree)) for file in tree.rglob("native/**/*.*")}
    assert found >= {"setup.py", "pyproject.toml", "server/embellama_server/web/templates/docs.html"}


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
