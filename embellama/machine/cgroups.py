"""Limits that Linux sets to a group of processes: a container's, a systemd unit's, a slice's.

/proc/self/cgroup ──► this process's group and those around it ──► the least of their limits

Both kinds of groups are read: version 1 has a hierarchy for each controller, version 2 one for all.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """Return how many CPUs this process's groups may use together, or None if they have no quota."""
    quotas = []
    for folder in _groups(""):
        quota, period = [*_words(folder / "cpu.max"), "", ""][:2]
        quotas += _share(quota, period)
    for folder in _groups("cpu"):
        quota, period = ([*_words(folder / f"cpu.cfs_{name}_us"), ""][0] for name in ("quota", "period"))
        quotas += _share(quota, period)
    return min(quotas, default=None)


def memory_left() -> int | None:
    """Return how many bytes this process's groups may still take, or None if they have no limit.

    Cached pages of files count as free: the kernel drops them when memory is needed.
    """
    left = []
    for folder in _groups(""):
        dropped_2 = ("inactive_file", "active_file", "slab_reclaimable")
        left += _room(folder, "memory.max", "memory.current", dropped_2)
    for folder in _groups("memory"):
        dropped_1 = ("total_inactive_file", "total_active_file")
        left += _room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", dropped_1)
    return min(left, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and those around it, of a controller of version 1, or "" for version 2.

    A container may see its own group as the root, whatever path the kernel gives it; so the root is always one.
    """
    top = ROOT / controller
    for line in _lines(MEMBERSHIP):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):
                if folder != Path() and (top / folder).is_dir():
                    yield top / folder
    yield top


def _share(quota: str, period: str) -> list[float]:
    """Return one share of CPUs, or none where the quota is "max", -1 or not there."""
    return [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() and int(period) else []


def _room(folder: Path, limit_file: str, used_file: str, dropped: tuple[str, ...]) -> list[int]:
    limit, used = ([*_words(folder / name), ""][0] for name in (limit_file, used_file))
    if not limit.isdecimal() or not used.isdecimal():
        return []  # no limit, or no such controller
    counts = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    free = sum(int(counts[name]) for name in dropped if counts.get(name, "").isdecimal())
    return [max(0, int(limit) - max(0, int(used) - free))]


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
