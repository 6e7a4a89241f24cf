"""Limits of containers, units and slices, of both versions of control groups."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embellama.config import n_cores
from embellama.machine import cgroups
from tests.conftest import ROOT

Groups = Callable[[str, dict[str, str]], None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Make this process a member of groups that have some files: ``groups("0::/a", {"a/cpu.max": …})``."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "self")

    def make(membership: str, files: dict[str, str]) -> None:
        (tmp_path / "self").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container with a namespace of its own
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/cpu.max": "50000 100000", "a.slice/b.service/cpu.max": "max 100000"},
            0.5,
        ),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/cpu.max": "300000 100000", "a.slice/b.service/cpu.max": "200000 100000"},
            2,
        ),
        ("0::/not/seen/here\n", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu:/docker/1\n", {"cpu/docker/cpu.cfs_quota_us": "100000", "cpu/docker/cpu.cfs_period_us": "50000"}, 2),
        ("nonsense\n", {"cpu.max": "many of them"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
    ],
)
def test_the_smallest_share_of_cpus_counts(
    groups: Groups, membership: str, files: dict[str, str], quota: float | None
) -> None:
    groups(membership, files)
    assert cgroups.cpu_quota() == quota


@pytest.mark.parametrize(
    ("share", "cores"), [("50000", 1), ("100000", 1), ("150000", 2), ("200000", 2), ("9999999", 8)]
)
def test_cores_follow_the_share_rounded_up(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, share: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    groups("0::/\n", {"cpu.max": f"{share} 100000"})
    assert n_cores() == cores


STAT = "anon 100\nfile 700\ninactive_file 400\nactive_file 200\nslab_reclaimable 50\nunevictable 0\n"


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        # 900 of 1000 are used, of which 650 can be dropped.
        ("0::/\n", {"memory.max": "1000", "memory.current": "900", "memory.stat": STAT}, 750),
        ("0::/\n", {"memory.max": "max", "memory.current": "900", "memory.stat": STAT}, None),
        ("0::/\n", {"memory.max": "1000", "memory.current": "900"}, 100),
        ("0::/\n", {"memory.max": "1000", "memory.current": "1100"}, 0),
        ("0::/s/u\n", {"s/memory.max": "500", "s/memory.current": "450", "s/u/memory.max": "max"}, 50),
        (
            "5:memory:/docker/1\n",
            {
                "memory/docker/1/memory.limit_in_bytes": "1000",
                "memory/docker/1/memory.usage_in_bytes": "900",
                "memory/docker/1/memory.stat": "cache 700\ntotal_inactive_file 300\ntotal_active_file 100\n",
            },
            500,
        ),
    ],
)
def test_cache_that_can_be_dropped_is_free(
    groups: Groups, membership: str, files: dict[str, str], left: int | None
) -> None:
    groups(membership, files)
    assert cgroups.memory_left() == left


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A real group with a quota of half a CPU, of whichever version this machine has."""
    version_1 = Path("/sys/fs/cgroup/cpu")
    folder = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"embellama-{os.getpid()}"
    try:
        folder.mkdir()
        if version_1.is_dir():
            (folder / "cpu.cfs_quota_us").write_text("50000")
        else:
            (folder / "cpu.max").write_text("50000 100000")
    except OSError as error:
        pytest.fail(f"no group with a quota can be made here, which takes root and the controller of CPUs: {error}")
    yield folder
    folder.rmdir()


def test_a_process_in_a_real_group_counts_its_share(real_group: Path) -> None:
    program = (
        f"import os; open({str(real_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from embellama.config import EngineConfig, n_cores\n"
        "from embellama.machine.cgroups import cpu_quota\n"
        "config = EngineConfig(model_path='m.gguf').checked()\n"
        "print(cpu_quota(), n_cores(), config.num_workers, config.n_threads_alone)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (result.stdout, result.stderr) == ("0.5 1 1 1\n", "")
