"""What the live view costs: a server with five tabs open, beside itself with none.

    .venv/bin/python -m benchmarks.page --save     # and keeps it under benchmarks/results/

32 clients with one short text each, in turns with and without the tabs, each of which reads `/admin/events` as the page
does; the figure is the median of the rounds' ratios. Rounds differ by more than tabs cost, so the seconds that the
server's front computes for the tabs are measured too, while it has nothing else to do: as a share of one core.
"""

import argparse
import contextlib
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from embellama_server.web.live import EVENTS

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from benchmarks.front import cpu_s
from tests.conftest import Server, running_server

N_TABS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="What the live view costs.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--seconds", type=float, default=5, help="length of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-page-CPU.json")
    options = parser.parse_args()
    requests = [[text] for text in texts.sentences()[:600]]
    flags = ("--model-path", options.model_path, "--model-name", "minilm", "--workers", "2", "--cache-bytes", "0")
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "log", *flags) as server:

        def rate(seconds: float) -> float:
            found = load.run(server.url, "minilm", requests, 32, seconds)
            assert not found.failed
            return found.texts_per_s

        rate(1)  # to warm up
        ratios = [ratio(server, rate, options.seconds, i) for i in range(options.rounds)]
        core = core_share(server, 6 * options.seconds)
    print(f"median {statistics.median(ratios):.4f}; {N_TABS} tabs take {100 * core:.2f} % of a core")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "tabs": N_TABS, "seconds": options.seconds, "ratios": ratios}
        result |= {"median": statistics.median(ratios), "core_share": core}
        path = result_base("page", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def ratio(server: Server, rate: Callable[[float], float], seconds: float, i: int) -> float:
    """Load the server with tabs and without, in an order that takes turns; return the ratio of requests a second."""
    found = {}
    for has_tabs in (True, False) if i % 2 else (False, True):
        with tabs(server, N_TABS if has_tabs else 0):
            found[has_tabs] = rate(seconds)
    print(f"without {found[False]:8.1f}/s   with {found[True]:8.1f}/s   {found[True] / found[False]:.4f}")
    return found[True] / found[False]


def core_share(server: Server, seconds: float) -> float:
    """Return which share of a core the front takes for the tabs, beyond what it takes without, while it is idle."""

    def used() -> float:
        before = cpu_s(server.process)
        time.sleep(seconds)
        return (cpu_s(server.process) - before) / seconds

    idle = used()
    with tabs(server, N_TABS):
        return used() - idle


@contextlib.contextmanager
def tabs(server: Server, n: int) -> Iterator[None]:
    """Keep streams of events open, and read them."""
    address = urlsplit(server.url)
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            client = stack.enter_context(socket.create_connection((str(address.hostname), int(address.port or 0))))
            client.sendall(f"GET {EVENTS} HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode())
            assert client.recv(12) == b"HTTP/1.1 200"
            reader = threading.Thread(target=_read_all, args=(client,))
            reader.start()
            stack.callback(reader.join)
            stack.callback(client.shutdown, socket.SHUT_RDWR)
        yield


def _read_all(client: socket.socket) -> None:
    while client.recv(65_536):
        pass


if __name__ == "__main__":
    main()
