"""embellama beside others, on the same texts, the same weights and the same cores.

    .venv/bin/python -m benchmarks.peers [PART ...] --python ../peers/bin/python --llama-server PATH --save

minilm       the library beside llama.cpp and others (peer.py: what --python needs): texts/s, cosines, a lone text
bert-base    the same with a model of that shape and random weights
qwen3-0.6b   the same
workers      one, two and four workers of one thread each: the library, and the server under compare.py's 32 × 1
formats      raw llama.cpp with each models/minilm-*.gguf: how fast, and how near to sentence-transformers
flags        llama-server under many flags: which are its best
server       our server, and llama-server as it comes and with its best flags, under the loads of compare.py
curve        both with 1 to 128 clients, for plot.py

Each part measures its things in turn, round after round. With --save it replaces its own figures of today in
benchmarks/results/DATE-peers-CPU.json, and the tables beside it are made again; so parts may run one at a time.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks import compare, library, texts
from benchmarks.compare import ROOT, Measure
from benchmarks.contenders import WORKERS, running_llama_server, running_peer, worst_cosine
from benchmarks.raw import Raw
from embellama import EmbeddingEngine, EmbeddingModel, EngineConfig

Result = dict[str, Any]

# One thread for each worker.
SCALE = (1, 2, 4)

LLAMA_SERVERS = ("llama-server, defaults", "llama-server, best flags")
MAX_OTHERS = 0.05  # what other programs may take of the CPU's time
CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)

# llama-server gives each of its `-np` slots an equal part of `-c`: 512 tokens, what the model reads, as ours does.
BEST_FLAGS = "-np 8 -c 4096 -fa on"
_16_SLOTS = "-np 16 -c 8192"
FLAGS = (
    "",
    BEST_FLAGS,
    _16_SLOTS,
    f"{_16_SLOTS} -fa on",
    f"{_16_SLOTS} -fa on --threads-http 160",
    f"{_16_SLOTS} -fa on -b 1024 -ub 1024",
    f"{_16_SLOTS} -fa on -t 1 -tb 1",
    "-np 32 -c 16384 -fa on",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="embellama beside others: the library, and the server.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all of them)")
    parser.add_argument("--python", help="Python with the packages that benchmarks/peer.py names")
    parser.add_argument("--llama-server", help="llama-server's program")
    parser.add_argument("--llama-flags", default=BEST_FLAGS, help="its best flags (default: %(default)s)")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL", help="measure another server too")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="length of one load (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-peers-CPU.json and .md")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended then too
    parts = options.parts or list(PARTS)
    if options.python is None and {*parts} & {*library.MODELS, "formats"}:
        parser.error("--python is needed, for the other libraries")
    if options.llama_server is None and {*parts} & {"flags", "server", "curve"}:
        parser.error("--llama-server is needed")
    machine = compare.machine(options.model_path)
    base = compare.result_base("peers", machine["cpu"])
    result: Result = {}
    if options.save and base.with_suffix(".json").exists():
        result = json.loads(base.with_suffix(".json").read_text())
    result["machine"] = machine
    for part in parts:
        result[part] = measure(part, options)
        if options.save:
            compare.write(base.with_suffix(".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
            compare.write(base.with_suffix(".md"), render(result))
    print(render(result))


def measure(part: str, options: argparse.Namespace) -> Result:
    """Measure one part, and refuse the figures if other programs had much of the machine meanwhile."""
    start, busy, own = time.perf_counter(), busy_s(), sum(os.times()[:4])
    result = PARTS[part](options)
    seconds = time.perf_counter() - start
    # What was started has ended and been waited for, so `os.times` knows its time too.
    others = (busy_s() - busy - sum(os.times()[:4]) + own) / seconds / (os.cpu_count() or 1)
    if others > MAX_OTHERS:
        raise SystemExit(
            f"{part}: other programs took {others:.0%} of the CPU; the limit is {MAX_OTHERS:.0%}. Try again."
        )
    return {"cpu_of_others": round(others, 4), **result}


def busy_s() -> float:
    """Return for how many seconds this machine's cores have been busy, or taken by the host, since it started."""
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")  # which there are depends on the system
    return float(sum(getattr(times, kind, 0.0) for kind in kinds))


def measure_formats(options: argparse.Namespace) -> Result:
    """Measure raw llama.cpp with each format of the default model that is there."""
    short, long = (library.KINDS[kind](texts.sentences())[:600] for kind in ("short", "long"))
    formats: dict[str, Any] = {}
    measures: dict[str, Measure] = {}
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(running_peer(options.python))
        truth = peer.embed(peer.engines[0], short, 32)
        for path in sorted((ROOT / "models").glob("minilm-*.gguf")):
            config = EngineConfig(model_path=str(path), model_name="minilm", num_workers=WORKERS, cache_bytes=0)
            with EmbeddingEngine(config) as engine:
                formats[path.stem] = {"worst_cosine": worst_cosine(engine.embed_batch("minilm", short), truth)}
            encode = stack.enter_context(EmbeddingModel(config)).tokenizer.encode
            raw = stack.enter_context(contextlib.closing(Raw(str(path), WORKERS, 1)))
            for kind, wanted in (("short", short), ("long", long)):
                tokens = encode(wanted).tokens
                measures[f"{path.stem}, {kind}"] = functools.partial(compare.raw_rate, raw, tokens, 192)
        return {"formats": formats, "rounds": compare.rounds_of(measures, options.rounds)}


def measure_workers(options: argparse.Namespace) -> Result:
    """Measure the library and the server with `SCALE` workers of one thread each."""
    wanted = texts.sentences()[:600]
    measures: dict[str, Measure] = {}
    with contextlib.ExitStack() as stack:
        for n in SCALE:
            config = EngineConfig(
                model_path=options.model_path, model_name="minilm", num_workers=n, n_threads=1, cache_bytes=0
            )
            engine = stack.enter_context(EmbeddingEngine(config))
            measures[f"library, {n}"] = functools.partial(compare.library_rate, engine, wanted)
        for n in SCALE:
            url = stack.enter_context(our_server(options, n, "--n-threads", "1"))
            load = compare.loads("server", url, options.seconds)["server, 32 × 1"]
            measures[f"server, {n}"] = load
        return {"rounds": compare.rounds_of(measures, options.rounds)}


def measure_flags(options: argparse.Namespace) -> Result:
    """Measure llama-server under each of `FLAGS`."""
    with contextlib.ExitStack() as stack:
        measures: dict[str, Measure] = {}
        for flags in FLAGS:
            url = stack.enter_context(llama_server(options, flags))
            measures |= compare.loads(flags or "defaults", url, options.seconds)
        rounds = compare.rounds_of(measures, options.rounds)
        return {"flags": [flags or "defaults" for flags in FLAGS], "rounds": rounds}


def measure_servers(options: argparse.Namespace) -> Result:
    """Put compare.py's loads on each server, beside what raw llama.cpp does with the same texts."""
    config = EngineConfig(model_path=options.model_path, model_name="minilm", num_workers=WORKERS, cache_bytes=0)
    with contextlib.ExitStack() as stack:
        urls = {
            "embellama": stack.enter_context(our_server(options)),
            LLAMA_SERVERS[0]: stack.enter_context(llama_server(options, "")),
            LLAMA_SERVERS[1]: stack.enter_context(llama_server(options, options.llama_flags)),
            **dict(url.split("=", 1) for url in options.url),
        }
        encode = stack.enter_context(EmbeddingModel(config)).tokenizer.encode
        raw = stack.enter_context(contextlib.closing(Raw(options.model_path, WORKERS, 1)))
        alone = stack.enter_context(contextlib.closing(Raw(options.model_path, 1, WORKERS)))
        pool = texts.sentences()
        measures: dict[str, Measure] = {
            "raw, 1 × 1": functools.partial(compare.raw_latency, alone, encode(pool[:100]).tokens)
        }
        for kind, wanted in (("short", pool[:600]), ("mixed", texts.mixed(pool, 100))):
            tokens = encode(wanted).tokens
            budget = compare.best_budget(raw, tokens[::4])
            measures[f"raw, {kind}"] = functools.partial(compare.raw_rate, raw, tokens, budget)
        for name, url in urls.items():
            measures |= compare.loads(name, url, options.seconds)
        return {
            "seconds": options.seconds,
            "llama_flags": options.llama_flags,
            "servers": list(urls),
            "rounds": compare.rounds_of(measures, options.rounds),
        }


def measure_curve(options: argparse.Namespace) -> Result:
    """Let 1 to 128 clients ask for one short text each, of our server and of llama-server at its best."""
    short = [[text] for text in texts.sentences()[:600]]
    with contextlib.ExitStack() as stack:
        urls = {
            "embellama": stack.enter_context(our_server(options)),
            "llama-server": stack.enter_context(llama_server(options, options.llama_flags)),
        }
        measures: dict[str, Measure] = {
            f"{name}, {n}": functools.partial(compare.server_rate, url, short, n, options.seconds)
            for n in CLIENTS
            for name, url in urls.items()
        }
        rounds = compare.rounds_of(measures, options.rounds)
    medians = compare.medians_of(rounds)
    return {
        "seconds": options.seconds,
        "llama_flags": options.llama_flags,
        "clients": CLIENTS,
        "rounds": rounds,
        "medians": {name: [medians[f"{name}, {n}"] for n in CLIENTS] for name in urls},
    }


PARTS: dict[str, Callable[[argparse.Namespace], Result]] = {
    **{name: functools.partial(library.measure, name) for name in library.MODELS},
    "workers": measure_workers,
    "formats": measure_formats,
    "flags": measure_flags,
    "server": measure_servers,
    "curve": measure_curve,
}


@contextlib.contextmanager
def our_server(options: argparse.Namespace, n_workers: int = WORKERS, *flags: str) -> Iterator[str]:
    with compare.our_server(options.model_path, "--workers", str(n_workers), *flags) as (url, _):
        yield url


def llama_server(options: argparse.Namespace, flags: str) -> contextlib.AbstractContextManager[str]:
    return running_llama_server(options.llama_server, options.model_path, flags)


def render(result: Result) -> str:
    """Return everything measured so far as tables."""
    what = result["machine"]
    versions = {**what["versions"], **next((result[name]["versions"] for name in library.MODELS if name in result), {})}
    lines = [
        f"{what['cpu']}, {what['cores']} cores; {what['model']}; {WORKERS} workers; "
        f"llama.cpp built with {what['llama_cpp_compiler']}; Python {what['python']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Every figure, ratios too, is a median over rounds in which each thing was measured in turn."
    ]
    for name in library.MODELS:
        if name in result:
            lines += library.tables(name, result[name])
    if "workers" in result:
        medians = compare.medians_of(result["workers"]["rounds"])
        lines += ["", "| workers, one thread each | library texts/s | server texts/s, 32 × 1 |", "|---|---|---|"]
        for n in SCALE:
            rates = [medians[f"{what}, {n}"]["texts_per_s"] for what in ("library", "server")]
            lines.append(f"| {n} | {rates[0]:.0f} | {rates[1]:.0f} |")
    if "formats" in result:
        medians = compare.medians_of(result["formats"]["rounds"])
        lines += ["", "| format | short texts/s | long texts/s | worst cosine |", "|---|---|---|---|"]
        for name, format in result["formats"]["formats"].items():
            short, long = (medians[f"{name}, {kind}"]["texts_per_s"] for kind in ("short", "long"))
            lines.append(f"| {name} | {short:.0f} | {long:.0f} | {format['worst_cosine']:.6f} |")
    if "flags" in result:
        lines += load_table("llama-server's flags", result["flags"]["rounds"], list(result["flags"]["flags"]))
    if "server" in result:
        lines += load_table("server", result["server"]["rounds"], result["server"]["servers"])
        lines += ["", f"llama-server's best flags: `{result['server']['llama_flags']}`."]
    if "curve" in result:
        lines += curve_table(result["curve"])
    lines += ["", "| aim | wanted | measured | met |", "|---|---|---|---|"]
    for aim, wanted, measured in aims(result):
        met = measured >= wanted if wanted > 0 else measured <= -wanted
        sign = "≥" if wanted > 0 else "≤"
        lines.append(
            f"| {aim} | {sign} {abs(wanted)} | {measured:.{6 if 'cosine' in aim else 3}f} | {'yes' if met else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def load_table(title: str, rounds: list[compare.Round], names: list[str]) -> list[str]:
    """Return one row for each load and server: texts a second, and milliseconds."""
    medians = compare.medians_of(rounds)
    lines = ["", f"| clients × texts | {title} | texts/s | p50 ms | p99 ms | failed |", "|---|---|---|---|---|---|"]
    for load in compare.LOADS:
        for name in names:
            row = medians[f"{name}, {load}"]
            figures = f"{row['texts_per_s']:.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['failed']:.0f}"
            lines.append(f"| {load} | {name} | {figures} |")
    return lines


def curve_table(part: Result) -> list[str]:
    names = list(part["medians"])
    titles = " | ".join(f"{name} texts/s | p50 ms | p99 ms" for name in names)
    lines = ["", f"| clients | {titles} |", "|---" * (1 + 3 * len(names)) + "|"]
    for i, n in enumerate(part["clients"]):
        rows = [part["medians"][name][i] for name in names]
        cells = (f"{row['texts_per_s']:.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f}" for row in rows)
        lines.append(f"| {n} | {' | '.join(cells)} |")
    return lines


def aims(result: Result) -> Iterator[tuple[str, float, float]]:
    """Give each aim: what it says, the least ratio wanted (the most, if negative), the ratio measured."""
    for name in library.MODELS:
        if name in result:
            yield from library.aims(name, result[name])
    if "workers" in result:
        for what in ("library", "server"):
            for n, to, least in ((2, 1, 1.85), (4, 2, 0.95)):
                ratio = compare.ratio(result["workers"]["rounds"], f"{what}, {n}", f"{what}, {to}")
                yield f"{what}, {n} workers to {to}", least, ratio
    if "server" not in result:
        return
    rounds = result["server"]["rounds"]
    own = "embellama, 32 × 1"
    yield f"{own} to raw", 0.88, compare.ratio(rounds, own, "raw, short")
    yield f"{own}, p99 to p50", -2, statistics.median(r[own]["p99_ms"] / r[own]["p50_ms"] for r in rounds)
    yield "embellama, 4 × 32 to raw", 0.95, compare.ratio(rounds, "embellama, 4 × 32", "raw, short")
    yield "embellama, 1 × 1 to raw, p50", -1.15, compare.ratio(rounds, "embellama, 1 × 1", "raw, 1 × 1", "p50_ms")
    default, best = LLAMA_SERVERS
    for load, least in (("32 × 1", 1.15), ("4 × 32", 1.15), ("32 × 1 mixed", 1.2)):
        yield f"{load}, embellama to {best}", least, compare.ratio(rounds, f"embellama, {load}", f"{best}, {load}")
    yield f"1 × 1, embellama to {best}, p50", -1, compare.ratio(rounds, "embellama, 1 × 1", f"{best}, 1 × 1", "p50_ms")
    for load in ("32 × 1", "4 × 32"):
        yield f"{load}, embellama to {default}", 2, compare.ratio(rounds, f"embellama, {load}", f"{default}, {load}")


if __name__ == "__main__":
    main()
