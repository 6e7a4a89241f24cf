"""Watch which system calls programs make, with strace.

watched(log, command) ──► run it in place of the command ──► log ──► traced(log) ──► peers(calls)
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import wait_until
from tests.programs import program


def watched(log: Path, *command: str | Path, calls: str = "%network") -> list[str | Path]:
    """Return a command that does what `command` does, as the same process, and writes system calls into `log`.

    Args:
        calls: Which calls, in strace's words; those of child processes are written too.
    """
    # execve comes first, so that the log begins with the process itself.
    options = ("--daemonize", "--follow-forks", "--seccomp-bpf", "--quiet=attach", "--signal=none")
    return [program("strace"), *options, f"--trace=execve,{calls}", "--output", log, *command]


def traced(log: Path) -> list[str]:
    """Return the calls of a watched program that has ended, as ``name(arguments) = result``."""

    def lines() -> list[list[str]]:
        return [line.split(maxsplit=1) for line in log.read_text(errors="replace").splitlines()]

    def has_ended() -> bool:
        found = lines()
        return bool(found) and any(id == found[0][0] and text.startswith("+++") for id, text in found)

    wait_until(has_ended, "strace has written its end")
    return [text for _, text in lines()]


def peers(calls: Iterable[str]) -> set[tuple[str, int]]:
    """Return the internet addresses that calls connect or send to, with their ports."""
    found: set[tuple[str, int]] = set()
    for call in calls:
        if re.match("connect|send(to|msg|mmsg)", call):
            hosts = re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', call)
            ports = re.findall(r"sin6?_port=htons\((\d+)\)", call)
            found |= {(host, int(port)) for host, port in zip(hosts, ports, strict=True)}
    return found
