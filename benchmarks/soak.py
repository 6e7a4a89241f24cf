"""What the server promises, put to the test: processes killed and stopped, floods, hours, ends.

    .venv/bin/python -m benchmarks.soak                       # every scenario
    .venv/bin/python -m benchmarks.soak kills overload        # some of them
    .venv/bin/python -m benchmarks.soak --minutes 60 --save   # all, kept in docs/reliability.md and benchmarks/results/

kills      kill -9 of a random worker every 2 s
stop       kill -STOP of a worker: who does its work, and when another takes its place
overload   three times what the server can do
soak       minutes of everything, good and bad: memory, descriptors, zombies
drain      SIGTERM under load; SIGKILL of the front
fairness   single texts beside requests of 2048; what clients that hung up still cost
memory     the front's peak under a flood of requests of 2048 texts

The clients (`clients.py`) run in processes of their own, on the same cores as the server, and check every vector.
"""

import argparse
import contextlib
import datetime
import json
import multiprocessing
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
from embellama_server.workers.record import PATIENCE
from numpy.typing import NDArray

from benchmarks import clients
from benchmarks.clients import Asked, Plan
from benchmarks.compare import ROOT, machine, result_base
from tests.conftest import Server, running_server, wait_until

DOCUMENT = ROOT / "docs" / "reliability.md"
MARKS = ("<!-- benchmarks/soak.py writes from here -->", "<!-- to here -->")

# A vector with less than this cosine to its known one is a wrong one.
MIN_COSINE = 0.999

# The budget that servers run with here.
MAX_BATCH_TOKENS = 192

# What was sent so long before SIGTERM has been accepted: the server's event loop has been idle, or has read, since.
ACCEPTED_S = 0.1


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: str
    aim: str = ""
    met: bool | None = None  # None where there is no aim


class Session:
    """What the scenarios share: the server's settings, and processes to ask from."""

    def __init__(self, options: argparse.Namespace, pool: ProcessPoolExecutor, folder: Path):
        self.seconds: float = options.seconds
        self.minutes: float = options.minutes
        self.n_drains: int = options.drains
        self.n_workers: int = options.workers
        self._model_path: str = options.model_path
        self._pool = pool
        self._folder = folder
        self._n_servers = 0

    def server(self, *flags: str) -> contextlib.AbstractContextManager[Server]:
        """Run a server, ready, with a log of its own."""
        self._n_servers += 1
        common = [
            "--max-batch-tokens",
            str(MAX_BATCH_TOKENS),
            "--model-path",
            self._model_path,
            "--model-name",
            "minilm",
            "--workers",
            str(self.n_workers),
            "--cache-bytes",
            "0",
        ]
        return running_server(self._folder / f"{self._n_servers}.log", *common, *flags)

    def start(self, plan: Plan) -> "Future[Asked]":
        """Ask in another process."""
        return self._pool.submit(clients.ask, plan)

    def ask(self, server: Server, seconds: float, **plan: Any) -> Asked:
        """Ask in another process, and wait for the answers."""
        return self.start(Plan(url=server.url, seconds=seconds, **plan)).result()

    def hang_up(self, plan: Plan) -> float:
        """Have clients ask and hang up, in another process."""
        return self._pool.submit(clients.hang_up, plan).result()


def kills(session: Session) -> Iterator[Row]:
    """Kill a worker every 2 s; the undisturbed run is before and after, half each, lest a drift decide."""
    load: dict[str, Any] = {"n_clients": 32, "sizes": (1, 4)}
    with session.server() as server:
        session.ask(server, 2, **load)
        calm = [session.ask(server, session.seconds / 2, **load)]
        asked = session.start(Plan(url=server.url, seconds=session.seconds, **load))
        n_kills = 0
        while not asked.done():
            time.sleep(2)
            random.choice(server.workers()).kill()
            n_kills += 1
        server.wait_ready()
        calm.append(session.ask(server, session.seconds / 2, **load))
        disturbed = asked.result()
    ratio = 2 * texts_per_s(disturbed) / sum(map(texts_per_s, calm))
    yield failed(disturbed, f"{len(disturbed)} requests of 32 clients, {n_kills} workers killed: failed")
    yield wrong(disturbed)
    yield row("throughput, of undisturbed", ratio, 0.7, "≥", digits=2)
    yield Row("slowest answer, of undisturbed", f"{times(disturbed)[2]:.2f} s of {times(calm[0])[2]:.2f} s")


def stop(session: Session) -> Iterator[Row]:
    """Stop a worker's process, so that it is silent but not dead."""
    answered, replaced, all_asked = [], [], []
    with session.server("--worker-timeout-ms", "2000") as server:
        calm = session.ask(server, 3, n_clients=32, sizes=(1, 4))
        # A full batch excuses so much silence. Then it is computed elsewhere, after what is being computed there.
        batch_s = MAX_BATCH_TOKENS * session.n_workers * span(calm) / float(calm["n_tokens"].sum())
        bound_s = 2 + PATIENCE * batch_s + 2 * batch_s + times(calm)[1]
        for seed in range(3):
            plan = Plan(url=server.url, seconds=max(10, session.seconds / 4), n_clients=32, sizes=(1, 4), seed=seed)
            future = session.start(plan)
            time.sleep(3)
            victim = random.choice(server.workers())
            victim.suspend()
            at = time.monotonic()
            wait_until(lambda victim=victim: not victim.is_running(), "the stopped worker is killed")  # type: ignore[misc]
            server.wait_ready()
            replaced.append(time.monotonic() - at)
            asked = future.result()
            ends = asked["sent"] + asked["took"]
            answered.append(float((ends - at)[asked["sent"] < at].max()))
            all_asked.append(asked)
    asked = np.concatenate(all_asked)
    yield failed(asked, f"{len(asked)} requests of 32 clients, 3 workers stopped, worker_timeout_ms 2000: failed")
    yield wrong(asked)
    yield row(
        "its work is answered elsewhere after, at most; the hang bound and its turn", max(answered), bound_s, "≤", " s"
    )
    yield row("another serves in its place after, at most", max(replaced), 6, "≤", " s")


def overload(session: Session) -> Iterator[Row]:
    """Offer three times what the server can do, with requests of one text and of several."""
    for sizes in ((1, 1), (1, 16)):
        yield from _overload(session, sizes)


def _overload(session: Session, sizes: tuple[int, int]) -> Iterator[Row]:
    name = "1 text" if sizes[1] == 1 else f"{sizes[0]} to {sizes[1]} texts"
    with session.server() as server:
        idle_s = times(session.ask(server, 3))[0]
        session.ask(server, 2, n_clients=64, sizes=sizes)
        calm = session.ask(server, max(5, session.seconds / 4), n_clients=64, sizes=sizes)
        capacity, tokens_per_s = float(ok(calm).sum() / span(calm)), float(calm["n_tokens"].sum() / span(calm))
        # At the default settings, the waiting room holds so many requests or tokens, and each worker two batches.
        held_tokens = session.n_workers * 2 * MAX_BATCH_TOKENS
        full_s = min(512 / capacity, 2_000_000 / tokens_per_s) + held_tokens / tokens_per_s
        seconds = max(session.seconds, 4 * min(full_s, 30.0))
        flood = session.start(Plan(url=server.url, seconds=seconds, rate=3 * capacity, sizes=sizes, seed=1))
        probe = session.start(Plan(url=server.url, seconds=seconds + min(full_s, 30.0) + 5, seed=2))
        asked, probed = flood.result(), probe.result()
    start, end = float(asked["sent"].min()), float(asked["sent"].max())
    answered = asked["sent"] + asked["took"]
    steady = ok(asked) & (answered > (start + end) / 2) & (answered < end)  # the room has long been full
    goodput = float(steady.sum() / ((end - start) / 2)) / capacity
    refused = asked[asked["status"] == 503]
    accepted = asked[np.isin(asked["status"], (200, 504))]
    accepted_p50, accepted_p99 = np.percentile(accepted["took"], [50, 99]).tolist()
    no_p50, no_p99 = (np.percentile(refused["took"], [50, 99]) * 1000).tolist()
    after = probed[(probed["sent"] > end) & ok(probed)]
    slow = after[after["took"] > 2 * idle_s]
    calm_s = (
        float((slow["sent"] + slow["took"])[:1].max(initial=end)) - end
    )  # the first one waits for what was accepted
    later = after["took"][after["sent"] > end + max(2.0, calm_s)]
    offered = len(asked) / (end - start)
    what = f"{name}: {offered:.0f} requests/s offered, {capacity:.0f} is capacity"
    yield failed(asked, f"{what}: answered neither 200, 503 nor 504", allowed=(503, 504))
    yield wrong(asked)
    late = 100 * float((accepted["status"] == 504).mean())
    yield row(f"{name}: accepted, but too late (504)", late, 1, "≤", " %", 2)
    yield row(f"{name}: goodput, of capacity", goodput, 0.9, "≥", digits=2)
    yield Row(f"{name}: accepted requests, p50", f"{accepted_p50:.2f} s")
    room = f"a full waiting room is {full_s:.2f} s of work"
    yield row(f"{name}: accepted requests, p99; {room}", accepted_p99, 1.5 * full_s, "≤", " s", 2)
    yield Row(f"{name}: {len(refused)} 503s, p50", f"{no_p50:.1f} ms")
    yield row(f"{name}: 503s, p99", no_p99, 50, "≤", " ms")
    yield row(f"{name}: 503s with Retry-After", 100 * float(refused["retry_after"].mean()), 100, "≥", " %")
    yield row(f"{name}: a single text after the flood, answered within", calm_s, full_s / 0.9, "≤", " s")
    ratio = float(np.median(later)) / idle_s
    yield row(f"{name}: later ones, p50, of idle p50 {1000 * idle_s:.1f} ms", ratio, 1.5, "≤", " ×", 2)


def soak(session: Session) -> Iterator[Row]:
    """Everything at once for minutes; memory is looked at every second, and means anything after the first minute."""
    seconds = 60 * session.minutes
    first = min(60.0, seconds / 3)
    samples: list[tuple[float, dict[int, float]]] = []
    # No request of a patient crowd should be refused, or come too late, even on a slow machine.
    with session.server("--timeout-ms", "300000") as server:
        family = [server.process, *server.workers()]
        files = {process.pid: process.num_fds() for process in family}
        start = time.monotonic()
        plan = Plan(
            url=server.url, seconds=seconds, n_clients=8, sizes=(1, 64), n_tokens=(0, 512), mistakes=0.3, seed=3
        )
        future = session.start(plan)
        while not future.done():
            samples.append((time.monotonic() - start, {process.pid: rss_mb(process) for process in family}))
            time.sleep(1)
        asked = future.result()
        zombies = [child for child in server.process.children() if child.status() == psutil.STATUS_ZOMBIE]
        same = {*server.workers()} == {*family[1:]}
        wait_until(lambda: all(process.num_fds() <= files[process.pid] for process in family), "files are closed", 5)
        files_now = {process.pid: process.num_fds() for process in family}
    at = np.array([when for when, _ in samples])
    yield Row(f"{session.minutes:g} minutes, {len(asked)} requests of 1 to 64 texts", f"{int(ok(asked).sum())} good")
    provoked = asked["wanted"] != 200
    unexpected = asked[asked["status"] != asked["wanted"]]
    yield row(f"other answers than wanted ({counts(unexpected['status'])})", len(unexpected), 0, "≤", digits=0)
    yield Row("mistakes made on purpose, by the answer wanted; 0 hung up", counts(asked["wanted"][provoked]))
    yield wrong(asked)
    for number, process in enumerate(family):
        name = f"worker {number}" if number else "front"
        mb = np.array([each[process.pid] for _, each in samples])
        slope = 60 * float(np.polyfit(at[at >= first], mb[at >= first], 1)[0])
        each_minute = " ".join(f"{value:.0f}" for value in mb[:: max(1, round(first))])
        yield row(f"{name}'s memory, slope after {first:.0f} s (MB: {each_minute})", slope, 1, "≤", " MB/min", 2)
        change = files_now[process.pid] - files[process.pid]
        yield row(f"{name}'s descriptors, {files[process.pid]} at the start: more at the end", change, 0, "≤", digits=0)
    yield row("zombies, workers that died", len(zombies) + (not same), 0, "≤", digits=0)


def drain(session: Session) -> Iterator[Row]:
    """End the server under load, again and again: politely, then by SIGKILL."""
    statuses, took, n_left, n_accepted, n_lost, n_late, n_wrong = [], [], 0, 0, 0, 0, 0
    for seed in range(session.n_drains):
        with session.server() as server:
            future = session.start(Plan(url=server.url, seconds=60, n_clients=16, sizes=(1, 64), seed=seed))
            time.sleep(1.5)
            family = [server.process, *server.process.children(recursive=True)]
            at = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            statuses.append(server.process.wait(timeout=60))
            took.append(time.monotonic() - at)
            time.sleep(0.2)  # multiprocessing's resource tracker sees the end of the front, and ends too
            n_left += sum(alive(process) for process in family)
            asked = future.result()
        accepted = asked["sent"] < at - ACCEPTED_S
        open_then = accepted & (asked["sent"] + asked["took"] > at)
        n_accepted += int(open_then.sum())
        n_lost += int((accepted & (asked["status"] != 200)).sum())
        n_late += int((~accepted & (asked["status"] != 200)).sum())
        n_wrong += n_wrong_in(asked)
    yield row(f"{session.n_drains} × SIGTERM, {n_accepted} requests in hand: not answered", n_lost, 0, "≤", digits=0)
    yield row("wrong vectors", n_wrong, 0, "≤", digits=0)
    yield Row("requests sent less than 0.1 s before SIGTERM or after it, not answered", str(n_late))
    yield row("exit status, other than 0", sum(status != 0 for status in statuses), 0, "≤", digits=0)
    yield row("processes left", n_left, 0, "≤", digits=0)
    yield Row("from SIGTERM to the end, p50 and longest", f"{np.median(took):.1f} s, {max(took):.1f} s")
    n_left = 0
    for seed in range(3):
        with session.server() as server:
            future = session.start(Plan(url=server.url, seconds=10, n_clients=16, sizes=(1, 64), seed=seed))
            time.sleep(1.5)
            workers = server.workers()
            server.process.kill()
            time.sleep(1)
            n_left += sum(alive(process) for process in workers)
            future.result()
    yield row("3 × SIGKILL of the front: workers left after 1 s", n_left, 0, "≤", digits=0)


def fairness(session: Session) -> Iterator[Row]:
    """Ask for single texts beside requests of 2048; then hang up a hundred times and see what is still computed."""
    with session.server("--timeout-ms", "300000") as server:
        session.ask(server, 1)
        # Of like length, so that what differs is how long they wait.
        idle = times(session.ask(server, 3, n_tokens=(8, 24)))
        for n in (1, 4):
            big = session.start(Plan(url=server.url, seconds=session.seconds / 2, n_clients=n, sizes=(2048, 2048)))
            single = session.start(Plan(url=server.url, seconds=session.seconds / 2, n_tokens=(8, 24), seed=4))
            bigs, singles = big.result(), single.result()
            singles = singles[singles["sent"] > bigs["sent"].min() + 0.2]
            p50, p99, _ = times(singles)
            name = f"beside {n} × 2048 texts ({texts_per_s(bigs):.0f} texts/s): {len(singles)} single texts"
            yield failed(np.concatenate([bigs, singles]), f"{name}: failed")
            yield wrong(np.concatenate([bigs, singles]))
            yield Row(f"{name}, p50", f"{1000 * p50:.1f} ms")
            yield row(f"{name}, p99, of idle p50 {1000 * idle[0]:.1f} ms", p99 / idle[0], 5, "≤", " ×")
    yield from _hung_up(session)


def _hung_up(session: Session) -> Iterator[Row]:
    with session.server() as server:
        workers = server.workers()
        session.ask(server, 1, n_clients=16, sizes=(64, 64))
        before = cpu_s(workers)
        load = session.ask(server, 5, n_clients=16, sizes=(64, 64))
        tokens_per_cpu_s = float(load["n_tokens"].sum()) / (cpu_s(workers) - before)
        plan = Plan(url=server.url, seconds=1, n_clients=100, sizes=(64, 64))
        at = session.hang_up(plan)
        used = cpu_s(workers)
        lag = time.monotonic() - at
        time.sleep(2)
        tokens = (cpu_s(workers) - used) * tokens_per_cpu_s
    most = session.n_workers * 2 * 192
    yield row(
        f"100 clients with 64 texts each hang up ({1000 * lag:.0f} ms before looking): tokens computed afterwards",
        tokens,
        most,
        "≤",
        digits=0,
    )


def memory(session: Session) -> Iterator[Row]:
    """Flood the front with the largest requests: many short texts, then bodies of megabytes."""
    for name, n_tokens in (("short texts", (0, 60)), ("texts of 300 to 500 tokens", (300, 512))):
        with session.server("--max-request-tokens", "2000000") as server:
            session.ask(server, 1)
            idle = rss_mb(server.process)
            asked = session.ask(server, session.seconds / 2, n_clients=64, sizes=(2048, 2048), n_tokens=n_tokens)
            peak = peak_mb(server.process)
            answer_s = min(_health_s(server) for _ in range(3))
        yield Row(f"64 clients, 2048 {name}: answers", counts(asked["status"]))
        yield wrong(asked)
        yield row(f"64 clients, 2048 {name}: front's peak, {idle:.0f} MB idle", peak, idle + 2 * 256, "≤", " MB", 0)
        yield row(f"64 clients, 2048 {name}: /health afterwards", 1000 * answer_s, 50, "≤", " ms")


SCENARIOS: dict[str, Callable[[Session], Iterator[Row]]] = {
    "kills": kills,
    "stop": stop,
    "overload": overload,
    "soak": soak,
    "drain": drain,
    "fairness": fairness,
    "memory": memory,
}


def row(what: str, value: float, aim: float, sign: str, unit: str = "", digits: int = 1) -> Row:
    """Make a row that meets its aim or does not; `sign` is ≤ or ≥."""
    met = value <= aim if sign == "≤" else value >= aim
    return Row(what, f"{value:.{digits}f}{unit}", f"{sign} {aim:.{digits}f}{unit}", bool(met))


def failed(asked: Asked, what: str, allowed: tuple[int, ...] = ()) -> Row:
    return row(what, int((~np.isin(asked["status"], (200, *allowed))).sum()), 0, "≤", digits=0)


def wrong(asked: Asked) -> Row:
    return row("wrong vectors", n_wrong_in(asked), 0, "≤", digits=0)


def n_wrong_in(asked: Asked) -> int:
    return int((asked["cosine"] < MIN_COSINE).sum())


def ok(asked: Asked) -> Any:
    return asked["status"] == 200


def times(asked: Asked) -> tuple[float, float, float]:
    """Return p50, p99 and the longest of the answers with status 200, in seconds."""
    p50, p99, longest = np.percentile(asked["took"][ok(asked)], [50, 99, 100]).tolist()
    return p50, p99, longest


def span(asked: Asked) -> float:
    """Return the seconds from the first request to the last answer."""
    return float((asked["sent"] + asked["took"]).max() - asked["sent"].min())


def texts_per_s(asked: Asked) -> float:
    return float(asked["n_texts"].sum()) / span(asked)


def counts(statuses: NDArray[np.int32]) -> str:
    return ", ".join(f"{n} × {status}" for status, n in zip(*np.unique(statuses, return_counts=True), strict=True))


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def rss_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def peak_mb(process: psutil.Process) -> float:
    """Return the most memory a process ever had resident, as Linux keeps it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _health_s(server: Server) -> float:
    start = time.perf_counter()
    httpx.get(f"{server.url}/health", timeout=60).raise_for_status()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Put what the server promises to the test.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS) + " (default: all)")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="length of one load (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="length of the soak (default: %(default)s)")
    parser.add_argument("--drains", type=int, default=20, help="times SIGTERM is sent (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the table in docs/{DOCUMENT.name} and results/")
    options = parser.parse_args()
    if unknown := {*options.scenarios} - {*SCENARIOS}:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    rows: list[tuple[str, Row]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool, tempfile.TemporaryDirectory() as folder:
        session = Session(options, pool, Path(folder))
        for name in options.scenarios or SCENARIOS:
            for found in _outcome(name, session):
                rows.append((name, found))
                print(_line(name, found), file=sys.stderr, flush=True)
    if options.save:
        save(rows, options)
    else:
        print(render(rows, options))
    if any(found.met is False for _, found in rows):
        sys.exit(1)


def _outcome(name: str, session: Session) -> Iterator[Row]:
    """Run a scenario; one that breaks down is a row too, so that the others still run."""
    try:
        yield from SCENARIOS[name](session)
    except Exception as error:
        traceback.print_exc()
        yield Row("the scenario ran to its end", f"no: {type(error).__name__}", "yes", False)


def render(rows: list[tuple[str, Row]], options: argparse.Namespace) -> str:
    what = machine(options.model_path)
    n_missed = sum(found.met is False for _, found in rows)
    lines = [
        f"{what['cpu']}, {what['cores']} cores, clients included; {what['model']}; Python {what['python']}; "
        + ", ".join(f"{k} {v}" for k, v in what["versions"].items())
        + f". {datetime.date.today()}, {options.workers} workers, loads of {options.seconds:g} s. "
        + f"Aims missed: {n_missed}.",
        "",
        "| scenario | what | measured | aim | met |",
        "|---|---|---|---|---|",
        *(_line(name, found) for name, found in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, found: Row) -> str:
    met = {True: "yes", False: "**no**", None: ""}[found.met]
    return f"| {name} | {found.what} | {found.value} | {found.aim} | {met} |"


def save(rows: list[tuple[str, Row]], options: argparse.Namespace) -> None:
    """Keep the table; scenarios that were not run keep their rows of today."""
    what = machine(options.model_path)
    base = result_base("soak", what["cpu"])
    if base.with_suffix(".json").exists():
        kept = json.loads(base.with_suffix(".json").read_text())["rows"]
        ran = {name for name, _ in rows}
        rows += [(row.pop("scenario"), Row(**row)) for row in kept if row["scenario"] not in ran]
        rows.sort(key=lambda row: [*SCENARIOS].index(row[0]))
    table = render(rows, options)
    print(table)
    settings = {name: getattr(options, name) for name in ("workers", "seconds", "minutes", "drains")}
    result = {
        "machine": what,
        "options": settings,
        "rows": [{"scenario": name, **found._asdict()} for name, found in rows],
    }
    base.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    base.with_suffix(".md").write_text(table)
    text = DOCUMENT.read_text()
    before, after = text.partition(MARKS[0])[0], text.partition(MARKS[1])[2]
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n\n{table}\n{MARKS[1]}{after}")
    print(f"saved {base.relative_to(ROOT)}.md and .json, and docs/{DOCUMENT.name}")


if __name__ == "__main__":
    main()
