"""How scripts/setup builds llama.cpp and the kernels: by which compiler, with which flags, when, and what it gives."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run, tracked

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

# Stands in for .venv/bin/python: llama_cpp is not installed yet, pip downloads an archive, and what is called is noted.
PYTHON = """\
#!/bin/bash
[[ $* == *"import llama_cpp"* ]] && exit 1
[[ $1 == -c ]] && exec python3 "$@"
[[ $* =~ " download ".*" --dest "([^ ]+) ]] && touch "${BASH_REMATCH[1]}/llama_cpp_python-0.3.36.tar.gz"
echo "$PWD|CC=${CC:-}|CXX=${CXX:-}|CXXFLAGS=${CXXFLAGS:-}|CMAKE_ARGS=${CMAKE_ARGS:-}|$*" >> "$PIP_LOG"
"""


def copy(tree: Path, *paths: str) -> None:
    for path in tracked(*paths):
        (tree / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tree / path.relative_to(ROOT))


def setup(folder: Path, compilers: dict[str, bool], **environment: str) -> tuple[str, list[str]]:
    """Run scripts/setup in a copy, where these compilers work or don't; return what it prints and how it calls pip.

    Only calls of pip that are about llama.cpp are returned.
    """
    tree, bin = folder / "a clone", folder / "bin"
    copy(tree, "scripts/setup", "scripts/amx_tile_config.h", "pyproject.toml", "native")
    (tree / ".venv" / "bin").mkdir(parents=True)
    bin.mkdir()
    works = {f"clang++-{version}": False for version in (19, 20, 21, 22)} | {"cmake": True, "c++": True} | compilers
    programs = {
        bin / name: f"#!/bin/bash\n[[ $* == *' - '* ]] && cat\nexit {0 if fine else 1}\n"
        for name, fine in works.items()
    }
    for program, text in ({tree / ".venv" / "bin" / "python": PYTHON} | programs).items():
        program.write_text(text)
        program.chmod(0o755)
    log = folder / "pip.log"
    known = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX", "CXXFLAGS", "CMAKE_ARGS")}
    environment |= {"PATH": f"{bin}:{os.environ['PATH']}", "PIP_LOG": str(log), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run([tree / "scripts" / "setup"], capture_output=True, text=True, env=known | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in log.read_text().splitlines() if re.search("llama.cpp.python", line)]


def test_clang_is_taken_where_it_is_there_with_openmp(tmp_path: Path) -> None:
    printed, (_, built, installed) = setup(tmp_path, {"clang++-19": True, "clang++-20": True})
    assert "|CC=clang-20|CXX=clang++-20|CXXFLAGS=|CMAKE_ARGS=-DLLAVA_BUILD=OFF |" in built
    assert " wheel --no-cache-dir " in built
    assert re.search(r" install --find-links \S+/cache/embellama/wheels/\w{12} llama-cpp-python", installed)
    assert "would make it" not in printed


def test_gcc_reads_the_header_that_keeps_amx_alive_and_the_gain_of_clang_is_said(tmp_path: Path) -> None:
    printed, (_, built, _) = setup(tmp_path, {})
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
        _, (_, built, _) = setup(tmp_path / name, compilers)
        folders += [Path(built.split("--wheel-dir ")[1].split()[0]).name]
    assert folders[0] == folders[1] != folders[2]


def test_an_archive_is_fetched_once_for_llama_cpp_and_the_kernels(tmp_path: Path) -> None:
    _, (fetched, built, _) = setup(tmp_path, {})
    assert re.search(r" download --quiet --no-deps --dest (\S+) --find-links \S+ llama-cpp-python", fetched)
    calls = (tmp_path / "pip.log").read_text().splitlines()
    archive = built.rpartition(" ")[2]
    between = calls[calls.index(fetched) + 1 : calls.index(built)]
    assert [call.rpartition("|")[2] for call in between] == [f"native/build.py --archives {Path(archive).parent}"]
    assert not Path(archive).exists()


@pytest.mark.parametrize(
    "changed", ["native/src/graph.cpp", "native/src", ".venv/lib/python3/site-packages/llama_cpp/lib"]
)
def test_the_kernels_alone_are_built_when_only_they_or_llama_cpp_have_changed(changed: str, tmp_path: Path) -> None:
    setup(tmp_path, {})
    tree, log = tmp_path / "a clone", tmp_path / "pip.log"
    for touched, calls in ((False, []), (True, ["native/build.py"]), (False, [])):
        if touched:
            (tree / changed).parent.mkdir(parents=True, exist_ok=True)
            (tree / changed).touch()
        log.write_text("")
        done = run(tree / "scripts" / "setup", env=os.environ | {"PIP_LOG": str(log)})
        assert (done.returncode, done.stdout) == (0, "")
        assert [line.rpartition("|")[2] for line in log.read_text().splitlines()] == calls


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMX is x86-64's")
def test_the_table_of_tiles_is_stored_before_it_is_loaded(tmp_path: Path) -> None:
    source = tmp_path / "tiles.cpp"
    source.write_text(TILES)
    flags = ["-O3", "-std=c++17", "-mamx-tile", "-fno-pic", "-S", "-o", "-", "-include", str(HEADER)]
    code = subprocess.run(["c++", *flags, source], capture_output=True, text=True, check=True).stdout
    [between] = re.findall(r"n_columns.*?ldtilecfg", code[code.index("set_tiles") :], re.DOTALL)
    assert re.search(r"movw\s+%\w+, -?\d+\(%r[bs]p\)", between), between


needs_kernels = pytest.mark.skipif(
    (sys.platform, os.uname().machine) != ("linux", "x86_64"), reason="the kernels are for Linux on x86-64"
)

# Stands in for CMake: what is compiled is a list of the options.
CMAKE = """\
#!/bin/bash
[[ $1 == --build ]] && { [[ -z $BROKEN ]] || { echo "a.cpp:1:2: error: broken"; exit 1; }; exit; }
mkdir -p "$4" && echo "$*" > "$4/libembellama_compute.so"
"""


def build(tree: Path, **environment: str) -> str:
    """Run native/build.py, which never fails, and return what it prints."""
    done = run(sys.executable, tree / "native" / "build.py", env=os.environ | environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the kernels were built."""
    tree = tmp_path_factory.mktemp("built")
    copy(tree, "native", "embellama")
    assert build(tree) == "kernels: building them takes seconds\n"
    return tree


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """A path with a compiler and a CMake that compile nothing; and a clone, `TREE`."""
    copy(tmp_path / "tree", "native", "embellama")
    for name, text in (("c++", "#!/bin/sh\n"), ("cmake", CMAKE)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    for name in ("bash", "mkdir"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return {"PATH": str(tmp_path / "bin"), "CXX": "", "BROKEN": ""}


def defined(*arguments: str | Path) -> dict[str, str]:
    """List what nm says is defined: names with their kinds."""
    listed = subprocess.check_output(["nm", "--defined-only", "-P", *arguments], text=True)
    return {name: kind for name, kind, *_ in map(str.split, listed.splitlines())}


@needs_kernels
def test_the_library_has_its_c_api_and_nothing_else(built: Path) -> None:
    header = (built / "native" / "include" / "embellama_compute.h").read_text()
    declared = set(re.findall(r"^EMBELLAMA_COMPUTE_API .*?(\w+)\(", header, re.MULTILINE))
    assert "embellama_compute_device" in declared
    assert set(defined("-D", built / "embellama" / "libembellama_compute.so")) == declared


@needs_kernels
def test_what_is_compiled_for_one_cpu_is_linked_in_place_of_nothing_else(built: Path) -> None:
    objects = [*(built / "build" / "native" / "cmake").rglob("kernels_*.o")]
    assert len(objects) >= 4
    for file in objects:  # lower case is local to the file, but for weak symbols
        names = [name for name, kind in defined(file).items() if kind.isupper() or kind in "uvw"]
        table = file.name.partition(".")[0]
        assert names == [f"_ZN9embellama{len(table)}{table}E"]


@needs_kernels
def test_the_library_finds_the_ggml_that_llama_cpp_uses_and_is_for_it(built: Path) -> None:
    library = built / "embellama" / "libembellama_compute.so"
    code = "import pathlib, sys; from embellama.kernels import Library; Library(pathlib.Path(sys.argv[1])).counts()"
    done = run(sys.executable, "-c", code, library)
    assert done.returncode == 0, done.stderr
    alone = run(sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", library)
    assert "cannot open shared object file" in alone.stderr


@needs_kernels
def test_nothing_is_done_while_the_library_is_up_to_date(built: Path, tmp_path: Path) -> None:
    library = built / "embellama" / "libembellama_compute.so"
    before = library.stat()
    assert build(built, PATH=str(tmp_path)) == ""  # no compiler, no CMake
    assert library.stat() == before


@needs_kernels
@pytest.mark.parametrize("changed", ["a source", "a header", "a build file", "a compiler", "flags"])
def test_the_library_is_built_again_when_what_it_is_made_of_changes(
    changed: str, stub: dict[str, str], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    assert build(tree, **stub).count("building") == 1
    assert build(tree, **stub) == ""
    file = {
        "a source": tree / "native" / "src" / "graph.cpp",
        "a header": tree / "native" / "include" / "embellama_compute.h",
        "a build file": tree / "native" / "CMakeLists.txt",
        "a compiler": tmp_path / "bin" / "c++",
    }.get(changed)
    if file:
        file.write_text(file.read_text() + "\n")
    else:
        stub |= {"CXXFLAGS": "-O2"}
    assert build(tree, **stub).count("building") == 1
    assert build(tree, **stub) == ""


@needs_kernels
@pytest.mark.parametrize(
    ("missing", "environment", "why"),
    [
        ("c++", {}, "needs a C++ compiler (on Debian: apt install g++)"),
        ("cmake", {}, "needs CMake (on Debian: apt install cmake)"),
        ("", {"EMBELLAMA_BUILD_KERNELS": "0"}, "EMBELLAMA_BUILD_KERNELS is 0"),
        ("", {"BROKEN": "yes"}, "c++ cannot build them: a.cpp:1:2: error: broken"),
        (
            "",
            {"XDG_CACHE_HOME": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
            "cannot fetch the headers of ",
        ),
    ],
)
def test_why_it_cannot_be_built_is_one_line_and_what_may_not_fit_is_gone(
    missing: str, environment: dict[str, str], why: str, stub: dict[str, str], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    library = tree / "embellama" / "libembellama_compute.so"
    library.write_text("of an earlier build")
    if missing:
        (tmp_path / "bin" / missing).unlink()
    *_, last = build(tree, **(stub | environment)).splitlines()
    assert last.startswith(f"kernels: not built: {why}")
    assert not library.exists()


@needs_kernels
def test_headers_of_another_ggml_are_refused(stub: dict[str, str], tmp_path: Path) -> None:
    version = re.search(r"\S+", run(sys.executable, "-c", "import llama_cpp; print(llama_cpp.__version__)").stdout)
    assert version
    (tmp_path / "site" / f"llama_cpp_python-{version[0]}.dist-info").mkdir(parents=True)
    library = tmp_path / "site" / "llama_cpp" / "lib" / "libggml-base.so"
    library.parent.mkdir(parents=True)
    source = tmp_path / "ggml.cpp"
    source.write_text('extern "C" const char * ggml_version() { return "0.0.1"; }')
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    printed = build(tmp_path / "tree", PYTHONPATH=str(tmp_path / "site"), **stub)
    assert re.fullmatch(r"kernels: not built: ggml 0\.0\.1 is installed, and the source archive has [\d.]+\n", printed)


def test_for_other_cpus_there_is_nothing_to_build(tmp_path: Path) -> None:
    copy(tmp_path, "native")
    code = "import build, platform; platform.machine = lambda: 'sparc'; build.main()"
    done = run(sys.executable, "-c", code, cwd=tmp_path / "native")
    assert done.stdout == f"kernels: not built: no kernels for this CPU ({sys.platform} sparc)\n"


def services(folder: Path, *there: str) -> "subprocess.CompletedProcess[str]":
    """Run scripts/setup --services where there is no apt-get, and of programs only these."""
    copy(folder, "scripts/setup")
    for name in ("bash", "dirname", "readlink"):
        (folder / name).symlink_to(shutil.which(name) or name)
    for name in there:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    # It looks into /usr/sbin too, where haproxy and nginx are, or are not.
    return run(folder / "scripts" / "setup", "--services", env={"PATH": str(folder)})


SERVICES = ("redis-server", "promtool", "chromium", "haproxy", "nginx", "strace", "systemd-analyze", "openssl")


def test_services_that_are_there_are_not_installed(tmp_path: Path) -> None:
    done = services(tmp_path, *SERVICES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_services_cannot_be_installed_it_says_how(tmp_path: Path) -> None:
    done = services(tmp_path, *{*SERVICES} - {"promtool", "chromium"})
    said = "setup: some tests need programs that are missing (on Debian: sudo apt install prometheus chromium)\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
