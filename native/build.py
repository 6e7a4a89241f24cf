#!/usr/bin/env python3
"""Build the kernels for the llama.cpp that is installed, in seconds, or say in one line why not.

llama-cpp-python that is installed ─ its version ─► source archive ─► headers() ─► CMake ─► libembellama_compute.so

Run as a program it puts the library into embellama/, and does nothing, in milliseconds, while that is up to date. It
never fails: all works without the library, only slower. Nothing is built where EMBELLAMA_BUILD_KERNELS is 0.

The library must fit the ggml that is loaded to the byte. Its public headers are installed with llama-cpp-python, its
internal ones are only in the source archive. All are kept in the cache folder, so an archive is fetched once.
"""

import argparse
import contextlib
import ctypes
import filecmp
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
LIBRARY = "libembellama_compute.so"
INSTALLED = ROOT / "embellama" / LIBRARY

# llama.cpp's headers in the source archive of llama-cpp-python, and where its ggml's version is said.
_HEADERS = re.compile(r"[^/]+/vendor/llama\.cpp/ggml/(?:include|src)/([\w-]+\.h)")
_CMAKE = re.compile(r"[^/]+/vendor/llama\.cpp/ggml/CMakeLists\.txt")
_VERSION = re.compile(r"set\(GGML_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)\)")

# The file that keeps that version beside the headers.
_GGML = "ggml-version.txt"

# These are installed too: if one of them differs, the archive is not what llama.cpp was built from.
_PUBLIC = ("ggml.h", "ggml-backend.h", "ggml-cpu.h")


class Unbuildable(Exception):
    """The library cannot be built here; the message says why."""


class Llama(NamedTuple):
    """An installed llama-cpp-python: its version, the folder that it lies in, its ggml's version."""

    version: str
    folder: Path
    ggml: str


class Compiler(NamedTuple):
    """A C++ compiler: how it is called, and what tells it from another one or another version."""

    command: str
    identity: str


def main() -> None:
    """Bring embellama/libembellama_compute.so up to date, or remove it."""
    parser = argparse.ArgumentParser(description="Build the kernels for the llama.cpp that is installed.")
    parser.add_argument("--archives", type=Path, help="only keep the headers of the source archives in this folder")
    archives = parser.parse_args().archives
    try:
        if archives:
            for archive in archives.glob("llama_cpp_python-*.tar.gz"):
                _keep_headers(archive)
        else:
            _install(build())
    except (Unbuildable, OSError) as error:
        # What was built before may not fit our sources or ggml any more.
        with contextlib.suppress(OSError):
            INSTALLED.unlink()
        print(f"kernels: not built: {error}")


def build(requirement: str = "") -> Path:
    """Build the library in build/native, unless it is up to date there.

    Args:
        requirement: Which llama-cpp-python to build for where none is installed: the newest that this allows.

    Returns:
        The library.

    Raises:
        Unbuildable: It cannot be built here.
    """
    if os.environ.get("EMBELLAMA_BUILD_KERNELS") == "0":
        raise Unbuildable("EMBELLAMA_BUILD_KERNELS is 0")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Unbuildable(f"no kernels for this CPU ({sys.platform} {platform.machine()})")
    llama = _llama()
    if not llama and not requirement:
        raise Unbuildable("llama-cpp-python is not installed")
    try:
        with _turn(ROOT / "build" / "native") as folder:
            return _build(folder, llama, requirement)
    except OSError as error:
        raise Unbuildable(str(error)) from error


def _build(folder: Path, llama: Llama | None, requirement: str) -> Path:
    library, key = folder / LIBRARY, folder / "key"
    built_of, built_by = (*_lines(key), "", "")[:2]
    compiler = _compiler()
    if llama:
        sources = _sources(llama.version, llama.ggml)
        # What is up to date needs no compiler.
        if library.exists() and sources == built_of and (not compiler or compiler.identity == built_by):
            return library
    if not compiler:
        raise Unbuildable("needs a C++ compiler (on Debian: apt install g++)")
    if not shutil.which("cmake"):
        raise Unbuildable("needs CMake (on Debian: apt install cmake)")
    headers = _headers(llama, requirement)
    ggml = llama.ggml if llama else (headers / _GGML).read_text()
    sources = _sources(headers.name, ggml)
    if library.exists() and (sources, compiler.identity) == (built_of, built_by):
        return library
    key.unlink(missing_ok=True)
    if compiler.identity != built_by:
        shutil.rmtree(folder / "cmake", ignore_errors=True)  # CMake keeps the compiler that it found first
    print("kernels: building them takes seconds", flush=True)
    _compile(folder / "cmake", headers, ggml, compiler)
    os.replace(folder / "cmake" / LIBRARY, library)
    key.write_text(f"{sources}\n{compiler.identity}\n")
    return library


def _compile(folder: Path, headers: Path, ggml: str, compiler: Compiler) -> None:
    options = [f"-DGGML_INCLUDE={headers}", f"-DGGML_VERSION={ggml}", f"-DLLAMA_VERSION={headers.name}"]
    environment = os.environ | {"CXX": compiler.command}
    threads = str(len(os.sched_getaffinity(0)))
    for command in (["-S", str(NATIVE), "-B", str(folder), *options], ["--build", str(folder), "--parallel", threads]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True, errors="replace", env=environment)
        if done.returncode:
            printed = done.stderr + done.stdout
            wrong = re.search(r".*(\b[Ee]rror: |cannot find ).*", printed) or re.search(r"CMake Error.*\n+.*", printed)
            said = " ".join((wrong.group() if wrong else printed[-200:]).split())
            raise Unbuildable(f"{compiler.command} cannot build them: {said}")


def _install(library: Path) -> None:
    if INSTALLED.exists() and filecmp.cmp(library, INSTALLED):
        return
    # Renamed into place: running programs keep the file that they have loaded.
    new = INSTALLED.with_suffix(f".{os.getpid()}")
    shutil.copy2(library, new)
    os.replace(new, INSTALLED)


def _llama() -> Llama | None:
    """Find llama-cpp-python where pip installs, also from the environment that pip makes for a build."""
    folders = dict.fromkeys([*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    for folder in map(Path, folders):
        for found in folder.glob("llama_cpp_python-*.dist-info"):
            version = found.name.removesuffix(".dist-info").partition("-")[2]
            return Llama(version, folder, _ggml_version(folder / "llama_cpp" / "lib"))
    return None


def _ggml_version(folder: Path) -> str:
    try:
        call = ctypes.CDLL(str(folder / "libggml-base.so")).ggml_version
    except (OSError, AttributeError) as error:
        raise Unbuildable(f"llama-cpp-python does not tell its ggml's version: {error}") from error
    call.restype = ctypes.c_char_p
    return str(call().decode())


def _headers(llama: Llama | None, requirement: str) -> Path:
    """Return the folder of ggml's headers for llama-cpp-python, fetched if they are not there."""
    if not llama:
        return _fetch_headers(requirement)
    headers = _cache() / llama.version
    if not headers.exists():
        _fetch_headers(f"llama-cpp-python=={llama.version}")
    for name in _PUBLIC:
        installed = llama.folder / "include" / name
        if installed.exists() and not filecmp.cmp(installed, headers / name, shallow=False):
            raise Unbuildable(f"{name} of llama-cpp-python differs from that of its source archive")
    version = (headers / _GGML).read_text()
    if not llama.ggml.startswith(version):
        raise Unbuildable(f"ggml {llama.ggml} is installed, and the source archive has {version}")
    return headers


def _fetch_headers(requirement: str) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "llama-cpp-python", "--dest", folder, requirement]
        # An outer pip that builds us follows its builds in a folder, and would take this one for one of them.
        environment = {key: value for key, value in os.environ.items() if key != "PIP_BUILD_TRACKER"}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            said = (re.findall(r"ERROR: (.+)", done.stderr) or ["no source archive"])[-1]
            raise Unbuildable(f"cannot fetch the headers of {requirement}: {said}")
        [archive] = archives
        return _keep_headers(archive)


def _keep_headers(archive: Path) -> Path:
    """Copy ggml's headers of a source archive into one folder, which is complete or not there."""
    headers = _cache() / archive.name.removesuffix(".tar.gz").partition("-")[2]
    if headers.exists():
        return headers
    try:
        headers.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=headers.parent) as folder:
            new = Path(folder) / "new"
            new.mkdir()
            with tarfile.open(archive) as members:
                for member in members:
                    content = members.extractfile(member) if member.isfile() else None
                    if content and (found := _HEADERS.fullmatch(member.name)):
                        (new / found[1]).write_bytes(content.read())
                    elif content and _CMAKE.fullmatch(member.name):
                        (new / _GGML).write_text(".".join(_VERSION.findall(content.read().decode())))
            try:
                new.rename(headers)
            except OSError:
                if not headers.exists():  # no other build was faster
                    raise
        return headers
    except (OSError, EOFError, tarfile.TarError) as error:
        raise Unbuildable(f"cannot keep the headers of {archive.name}: {error}") from error


def _compiler() -> Compiler | None:
    """Find the C++ compiler, that of CXX first; which version it is, its file says without being run."""
    for command in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        path = shutil.which(command.partition(" ")[0]) if command else None
        if path:
            path = os.path.realpath(path)
            stat = os.stat(path)
            flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "LDFLAGS")]
            identity = hashlib.sha256(repr((command, path, stat.st_size, stat.st_mtime_ns, flags)).encode())
            return Compiler(command, identity.hexdigest())
    return None


def _sources(llama: str, ggml: str) -> str:
    """Hash what the library is made of: our sources, and which llama-cpp-python and ggml it is for."""
    digest = hashlib.sha256(f"{llama} {ggml}".encode())
    for path in sorted([NATIVE / "CMakeLists.txt", *NATIVE.glob("include/**/*.*"), *NATIVE.glob("src/**/*.*")]):
        digest.update(f"\0{path.relative_to(NATIVE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[Path]:
    """Make a folder, in which two builds at once take turns."""
    import fcntl  # Windows has none

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _cache() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # this user has no home
        return ROOT / "build" / "headers"
    return cache / "embellama" / "headers"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
