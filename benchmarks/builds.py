"""Raw llama.cpp as different compilers and flags make it: what a build of one's own is worth.

    .venv/bin/python -m benchmarks.builds gcc= clang=../builds/clang/bin pgo=../builds/pgo/bin --save

NAME=FOLDER has the libraries of one build (`cmake -DBUILD_SHARED_LIBS=ON …`, target llama); an empty folder is
llama-cpp-python's own. Each runs in a process of its own, and all take turns in
every round; the table gives medians over the rounds of ratios to the first.
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks import compare, texts
from benchmarks.compare import ROOT, Measure
from benchmarks.raw import Raw
from embellama import EmbeddingModel, EngineConfig

KINDS = ("short", "long", "lone")
BUDGET = 128


def main() -> None:
    parser = argparse.ArgumentParser(description="Raw llama.cpp as different compilers and flags make it.")
    parser.add_argument("builds", nargs="+", metavar="NAME=FOLDER", help="the first one is what others are compared to")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-builds-CPU.json and .md")
    options = parser.parse_args()
    builds = dict(build.split("=", 1) for build in options.builds)
    with contextlib.ExitStack() as stack:
        asks = {name: stack.enter_context(running(folder, options.model_path)) for name, folder in builds.items()}
        measures: dict[str, Measure] = {
            f"{name}, {kind}": functools.partial(rate, ask, kind) for kind in KINDS for name, ask in asks.items()
        }
        rounds = compare.rounds_of(measures, options.rounds)
    machine = compare.machine(options.model_path)
    medians, first = compare.medians_of(rounds), next(iter(builds))
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; {machine['model']}; raw llama.cpp of llama-cpp-python "
        f"{machine['versions']['llama-cpp-python']}. Short texts have 17 tokens, long ones 10 times as many: two "
        "contexts of one thread. Lone: one short text at a time, one context of two threads.",
        "",
        "| build | " + " | ".join(f"{kind} texts/s | ratio" for kind in KINDS) + " |",
        "|---" * (1 + 2 * len(KINDS)) + "|",
    ]
    for name in builds:
        cells = (
            f"{medians[f'{name}, {kind}']['texts_per_s']:.0f} | "
            f"{compare.ratio(rounds, f'{name}, {kind}', f'{first}, {kind}'):.2f}"
            for kind in KINDS
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.save:
        base = compare.result_base("builds", machine["cpu"])
        result = {"machine": machine, "builds": list(builds), "rounds": rounds}
        compare.write(base.with_suffix(".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        compare.write(base.with_suffix(".md"), "\n".join(lines) + "\n")


@contextlib.contextmanager
def running(folder: str, model_path: str) -> Iterator[Callable[[str], float]]:
    """Load a model with a build's libraries, and give what measures one of `KINDS` with it, in texts a second."""
    environment = dict(os.environ)
    if folder:
        environment |= {"LLAMA_CPP_LIB_PATH": folder, "LD_LIBRARY_PATH": folder}
    program = "import sys; from benchmarks.builds import child; child(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, model_path],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout

    def ask(kind: str) -> float:
        print(kind, file=process.stdin, flush=True)
        assert process.stdout
        return float(process.stdout.readline())

    try:
        yield ask
    finally:
        process.communicate()


def rate(ask: Callable[[str], float], kind: str) -> dict[str, float]:
    return {"texts_per_s": ask(kind)}


def child(model_path: str) -> None:
    """Answer each kind read from standard input with how many of its texts were computed in a second."""
    pool = texts.sentences()
    config = EngineConfig(model_path=model_path, max_batch_tokens=BUDGET)
    with EmbeddingModel(config) as model:
        encode = model.tokenizer.encode
        short, long, lone = (encode(some).tokens for some in (pool[:500], texts.joined(pool, [10] * 40), pool[:60]))
    busy, alone = Raw(model_path, 2, 1), Raw(model_path, 1, 2)
    measures: dict[str, Callable[[], float]] = {
        "short": lambda: busy.texts_per_second(short, BUDGET),
        "long": lambda: busy.texts_per_second(long, BUDGET),
        "lone": lambda: alone.texts_per_second(lone, 1),
    }
    for line in sys.stdin:
        print(measures[line.strip()](), flush=True)


if __name__ == "__main__":
    main()
