"""What benchmarks.library compares: each embeds texts, says how long that took, and is given its best batch size.

Ours         the library, with its own kernels or llama.cpp's
RawGgml      llama.cpp itself (raw.py)
PeerEngine   an engine of peer.py, in a process with a Python of its own
LlamaServer  llama.cpp's server, asked by clients on the same cores
"""

import base64
import contextlib
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks import load, texts
from benchmarks.compare import RAW_BUDGETS, ROOT
from benchmarks.raw import Raw
from embellama import EmbeddingEngine, EmbeddingModel, EngineConfig

Rows = NDArray[np.float32]

WORKERS = 2

# What llama-server is asked at once: so many clients, each with so many texts.
SERVER_CLIENTS, SERVER_TEXTS = 4, 32


class Contender(Protocol):
    """Something that embeds.

    Attributes:
        unit: What a batch size counts; "" where it cannot be set.
        sizes: Batch sizes to choose from, growing.
    """

    unit: str = ""
    sizes: Sequence[int] = (0,)

    def seconds(self, wanted: list[str], size: int) -> float:
        """Embed texts in batches of `size`, and return how long that took."""

    def lone_ms(self, wanted: list[str]) -> float:
        """Embed one text after the other, and return the median of their milliseconds."""

    def embed(self, wanted: list[str]) -> Rows:
        """Return rows of unit length, ``(n_texts, dim)``."""


class Ours(Contender):
    """The library, which chooses its batches itself."""

    def __init__(self, engine: EmbeddingEngine):
        self._engine = engine

    def seconds(self, wanted: list[str], size: int) -> float:
        start = time.perf_counter()
        self._engine.embed_batch(None, wanted)
        return time.perf_counter() - start

    def lone_ms(self, wanted: list[str]) -> float:
        return statistics.median(1000 * self.seconds([text], 0) for text in wanted)

    def embed(self, wanted: list[str]) -> Rows:
        return np.asarray(self._engine.embed_batch(None, wanted))


class RawGgml(Contender):
    """llama.cpp itself; its texts are tokenized before the clock starts."""

    unit = "tokens"
    sizes = RAW_BUDGETS

    def __init__(self, path: str):
        self._model = EmbeddingModel(EngineConfig(model_path=path, compute="llama"))
        self._many, self._lone = Raw(path, WORKERS, 1), Raw(path, 1, WORKERS)

    def seconds(self, wanted: list[str], size: int) -> float:
        return len(wanted) / self._many.texts_per_second(self._model.tokenizer.encode(wanted).tokens, size)

    def lone_ms(self, wanted: list[str]) -> float:
        tokens = self._model.tokenizer.encode(wanted).tokens
        return statistics.median(1000 / self._lone.texts_per_second([text], 512) for text in tokens)

    def embed(self, wanted: list[str]) -> Rows:
        return np.asarray(self._model.embed_batch(wanted))

    def close(self) -> None:
        for what in (self._many, self._lone, self._model):
            what.close()


class Peer:
    """peer.py's process.

    Attributes:
        engines: Names of its engines; the vectors of the first are the truth.
        versions: Of its packages.
    """

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process
        # Of the end of the sentences: what is measured is at their beginning.
        pool = texts.sentences()[-400:]
        head = self._ask(pool[:20] + texts.joined(pool, [2, 4, 8, 16] * 3))
        self.engines: list[str] = head["engines"]
        self.versions: dict[str, str] = head["versions"]

    def embed(self, engine: str, wanted: list[str], batch_size: int = 8) -> Rows:
        answer = self._ask({"engine": engine, "texts": wanted, "batch_size": batch_size, "vectors": True})
        return np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(len(wanted), -1)

    def seconds(self, engine: str, wanted: list[str], batch_size: int) -> list[float]:
        """Return how long the texts took; with a batch size of 0, how long each took alone."""
        answer = self._ask({"engine": engine, "texts": wanted, "batch_size": batch_size, "vectors": False})
        return [float(s) for s in answer["seconds"]]

    def _ask(self, question: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("benchmarks/peer.py ended; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


class PeerEngine(Contender):
    """One engine of peer.py."""

    unit = "texts"
    sizes = (4, 8, 16, 32, 64)

    def __init__(self, peer: Peer, name: str):
        self._peer, self._name = peer, name

    def seconds(self, wanted: list[str], size: int) -> float:
        return sum(self._peer.seconds(self._name, wanted, size))

    def lone_ms(self, wanted: list[str]) -> float:
        return 1000 * statistics.median(self._peer.seconds(self._name, wanted, 0))

    def embed(self, wanted: list[str]) -> Rows:
        return self._peer.embed(self._name, wanted)


class LlamaServer(Contender):
    """llama-server, whose answers travel by HTTP."""

    def __init__(self, url: str):
        self._url = url

    def seconds(self, wanted: list[str], size: int) -> float:
        # Each client has at least one request to wait for, and no text is asked for twice.
        n = max(1, min(SERVER_TEXTS, len(wanted) // SERVER_CLIENTS))
        requests = [wanted[i : i + n] for i in range(0, len(wanted), n)]
        measured = load.run(self._url, "model", requests, SERVER_CLIENTS, None)
        if measured.failed:
            raise RuntimeError(f"llama-server refused {measured.failed} requests")
        return len(wanted) / measured.texts_per_s

    def lone_ms(self, wanted: list[str]) -> float:
        return load.run(self._url, "model", [[text] for text in wanted], 1, None).p50_ms

    def embed(self, wanted: list[str]) -> Rows:
        rows: list[list[float]] = []
        for text in wanted:
            reply = httpx.post(f"{self._url}/v1/embeddings", json={"model": "model", "input": text}, timeout=60)
            rows.append(reply.raise_for_status().json()["data"][0]["embedding"])
        return np.array(rows, np.float32)


@contextlib.contextmanager
def running_peer(python: str, model: Path | None = None) -> Iterator[Peer]:
    """Start peer.py with the Hugging Face model in a folder, by default MiniLM's, and end it."""
    command = [python, str(ROOT / "benchmarks" / "peer.py"), *(["--model", str(model)] if model else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Peer(process)
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def running_llama_server(program: str, model_path: str, flags: str) -> Iterator[str]:
    """Start llama-server on a free port, wait until it is ready, and give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [program, "--model", model_path, "--embeddings", "--port", port, *flags.split()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_healthy(url):
            if process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {process.returncode}: {' '.join(command)}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def worst_cosine(rows: Rows, truth: Rows) -> float:
    """Return the lowest cosine between rows of unit length, ``(n_texts, dim)`` each."""
    return float(np.sum(np.asarray(rows) * truth, axis=1).min())
