"""How scripts/setup builds llama.cpp: by which compiler, with which flags, and that GCC's AMX works then."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEADER = ROOT / "scripts" / "amx_tile_config.h"

# As ggml sets its tiles up (ggml-cpu/amx/mmq.cpp), but one number comes from a call, so that its way can be followed.
TILES = """
#include <immintrin.h>
struct tiles { unsigned char palette, start_row, reserved[14]; unsigned short colsb[16]; unsigned char rows[16]; };
unsigned short n_columns();
void set_tiles() {
    alignas(64) tiles config = {};
    config.palette = 1;
    config.colsb[7] = n_columns();
    _tile_loadconfig(&config);
}
"""

# Stands in for .venv/bin/python: llama_cpp is not installed yet, and what pip is called with is noted.
PYTHON = """\
#!/bin/bash
[[ $* == *"import llama_cpp"* ]] && exit 1
[[ $1 == -c ]] && exec python3 "$@"
echo "$PWD|CC=${CC:-}|CXX=${CXX:-}|CXXFLAGS=${CXXFLAGS:-}|CMAKE_ARGS=${CMAKE_ARGS:-}|$*" >> "$PIP_LOG"
"""


def setup(folder: Path, compilers: dict[str, bool], **environment: str) -> tuple[str, list[str]]:
    """Run scripts/setup in a copy, where these compilers work or don't; return what it prints and how it calls pip."""
    tree, bin = folder / "a clone", folder / "bin"
    for path in ("scripts/setup", "scripts/amx_tile_config.h", "pyproject.toml"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    (tree / ".venv" / "bin").mkdir(parents=True)
    bin.mkdir()
    works = {f"clang++-{version}": False for version in (19, 20, 21, 22)} | {"cmake": True, "c++": True} | compilers
    programs = {bin / name: f"#!/bin/bash\nexit {0 if fine else 1}\n" for name, fine in works.items()}
    for program, text in ({tree / ".venv" / "bin" / "python": PYTHON} | programs).items():
        program.write_text(text)
        program.chmod(0o755)
    log = folder / "pip.log"
    known = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX", "CXXFLAGS", "CMAKE_ARGS")}
    environment |= {"PATH": f"{bin}:{os.environ['PATH']}", "PIP_LOG": str(log), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run([tree / "scripts" / "setup"], capture_output=True, text=True, env=known | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in log.read_text().splitlines() if "llama-cpp-python" in line]


def test_clang_is_taken_where_it_is_there_with_openmp(tmp_path: Path) -> None:
    printed, (built, installed) = setup(tmp_path, {"clang++-19": True, "clang++-20": True})
    assert "|CC=clang-20|CXX=clang++-20|CXXFLAGS=|CMAKE_ARGS=-DLLAVA_BUILD=OFF |" in built
    assert " wheel --no-cache-dir " in built
    assert re.search(r" install --find-links \S+/cache/embellama/wheels/\w{12} llama-cpp-python", installed)
    assert "would make it" not in printed


def test_gcc_reads_the_header_that_keeps_amx_alive_and_the_gain_of_clang_is_said(tmp_path: Path) -> None:
    printed, (built, _) = setup(tmp_path, {})
    assert f"|CC=|CXX=|CXXFLAGS=-include '{tmp_path}/a clone/scripts/amx_tile_config.h' |" in built
    [line] = [line for line in printed.splitlines() if "would make it" in line]
    assert line.endswith("(on Debian: apt install clang-19 libomp-19-dev) would make it 1.1 times as fast")


def test_a_compiler_and_flags_of_ones_own_are_kept(tmp_path: Path) -> None:
    flags = {"CXX": "g++-14", "CMAKE_ARGS": "-DGGML_BLAS=ON", "CXXFLAGS": "-O2"}
    _, (built,) = setup(tmp_path, {"clang++-19": True}, **flags)
    assert "|CC=|CXX=g++-14|" in built
    assert "/scripts/amx_tile_config.h' -O2|CMAKE_ARGS=-DLLAVA_BUILD=OFF -DGGML_BLAS=ON|" in built
    assert " install --no-cache-dir " in built


def test_each_compiler_has_a_folder_of_wheels_and_a_second_build_finds_it(tmp_path: Path) -> None:
    folders = []
    for name, compilers in (("a", {}), ("b", {}), ("c", {"clang++-19": True})):
        (tmp_path / name).mkdir()
        _, (built, _) = setup(tmp_path / name, compilers)
        folders += [Path(built.split("--wheel-dir ")[1].split()[0]).name]
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMX is x86-64's")
def test_the_table_of_tiles_is_stored_before_it_is_loaded(tmp_path: Path) -> None:
    source = tmp_path / "tiles.cpp"
    source.write_text(TILES)
    flags = ["-O3", "-std=c++17", "-mamx-tile", "-fno-pic", "-S", "-o", "-", "-include", str(HEADER)]
    code = subprocess.run(["c++", *flags, source], capture_output=True, text=True, check=True).stdout
    [between] = re.findall(r"n_columns.*?ldtilecfg", code[code.index("set_tiles") :], re.DOTALL)
    assert re.search(r"movw\s+%\w+, -?\d+\(%r[bs]p\)", between), between
