"""Imports point one way: the rules are in pyproject.toml, under [tool.importlinter]."""

import graphlib
import os

import grimp
import pytest

from tests.conftest import BIN, ROOT, run

PACKAGES = ("embellama", "embellama_server")


def test_imports_point_only_where_pyproject_lets_them() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "server")])
    result = run(BIN / "lint-imports", "--no-cache", "--no-logo", cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 0, result.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"each of these is imported by the next: {', '.join(error.args[1])}")
