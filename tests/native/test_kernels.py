"""The compute library's own test programs: built here with sanitizers, then run.

What needs ggml is skipped until native/build.py has fetched its headers.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import pytest

from tests.conftest import ROOT

ADDRESS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"
THREAD = "-O1 -g1 -fsanitize=thread"
PLAIN = "-O1"

INSTALLED = ROOT / "embellama" / "libembellama_compute.so"
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
HEADERS = CACHE / "embellama" / "headers" / version("llama-cpp-python")


def _can_run() -> bool:
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if platform.machine() == "x86_64" and cpu.exists() else []
    return {"avx2", "fma", "f16c"} <= set(flags) and shutil.which("cmake") is not None


pytestmark = [
    pytest.mark.skipif(not _can_run(), reason="needs a CPU with AVX2, and CMake"),
    pytest.mark.timeout(600),  # a compiler on a busy machine
]


@pytest.mark.parametrize("program", ["test_vector", "test_kernels"])
def test_kernels_compute_what_plain_loops_do(program: str) -> None:
    run(build("address", ADDRESS, program))


def test_teams_share_their_work_without_races() -> None:
    run(build("thread", THREAD, "test_team"))


def test_processes_share_packed_weights() -> None:
    run(build("address", ADDRESS, "test_weights"))


def test_graphs_give_what_ggml_gives() -> None:
    run(build("address", ADDRESS, "test_graph"))


def test_the_device_computes_in_ggmls_scheduler() -> None:
    run(build("plain", PLAIN, "test_device"), str(INSTALLED))


def build(name: str, flags: str, target: str) -> Path:
    """Build a target of native/tests in a folder that is kept, and return the program."""
    for option in flags.split():
        compiled = subprocess.run([*compiler(), option, "-x", "c++", "-", "-o", os.devnull], input=b"int main() {}")
        if compiled.returncode:
            pytest.skip(f"the compiler has no {option}")
    folder = ROOT / "build" / "native-tests" / name
    options = ["-DEMBELLAMA_TESTS=ON", f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE=Test"]
    assert HEADERS.exists(), "run scripts/test, which keeps ggml's headers, or native/build.py"
    options += [f"-DGGML_INCLUDE={HEADERS}", f"-DGGML_VERSION={ggml_version()}", f"-DGGML_LIB={LIBRARIES}"]
    threads = str(len(os.sched_getaffinity(0)))
    for command in (
        ["-S", str(ROOT / "native"), "-B", str(folder), *options],
        ["--build", str(folder), "--target", target, "--parallel", threads],
    ):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "tests" / target


def compiler() -> list[str]:
    return os.environ.get("CXX", "c++").split()


def ggml_version() -> str:
    call = ctypes.CDLL(str(LIBRARIES / "libggml-base.so")).ggml_version
    call.restype = ctypes.c_char_p
    return str(call().decode())


def run(program: Path, *arguments: str) -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    # Older runtimes know fewer layouts of memory than newer kernels make.
    if "ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr
