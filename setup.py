"""Add the kernels of native/ to a wheel, where they can be built; all else is in pyproject.toml."""

import shutil
import sys
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "native"))
import build as kernels  # noqa: E402


def requirement() -> str:
    """Return which llama-cpp-python the library needs."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [found] = [line for line in needed if line.startswith("llama-cpp-python")]
    return str(found)


class BuildPy(build_py):
    """The packages, and the library beside them."""

    has_kernels = False

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # scripts/setup builds them
            return
        library = Path(self.build_lib) / "embellama" / kernels.LIBRARY
        try:
            built = kernels.build(requirement())
        except kernels.Unbuildable as error:
            library.unlink(missing_ok=True)
            print(f"kernels: not built: {error}", file=sys.stderr)
            return
        shutil.copy2(built, library)
        self.has_kernels = True


class BdistWheel(bdist_wheel):
    """A wheel for this platform if the library is in it, and for all otherwise; for any Python either way."""

    def run(self) -> None:
        self.run_command("build_py")
        if self.get_finalized_command("build_py").has_kernels:
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        platform: str = super().get_tag()[2]
        return self.python_tag, "none", platform


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
