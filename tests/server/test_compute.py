"""Workers compute with our kernels on one copy of the packed weights, whichever of them made it."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Reference, Server, instruction_sets, running_server, wait_until

INSTRUCTION_SET = instruction_sets()[0]


@pytest.fixture(scope="module")
def own_path(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shutil.copy(model_path, tmp_path_factory.mktemp("compute") / "minilm.gguf"))


@pytest.fixture(scope="module")
def server(own_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--model-path", own_path, "--workers", "2", "--compute", INSTRUCTION_SET)
    with running_server(tmp_path_factory.mktemp("compute") / "log", *flags) as server:
        yield server


def shared_weights(worker: psutil.Process) -> list[tuple[int, int]]:
    """Return the inode and the resident bytes of each mapping of shared weights."""
    found = []
    lines = iter(Path(f"/proc/{worker.pid}/smaps").read_text().splitlines())
    for line in lines:
        if "memfd:embellama-weights" in line:
            inode = int(line.split()[4])
            resident = next(entry for entry in lines if entry.startswith("Rss:"))
            found.append((inode, 1024 * int(resident.split()[1])))
    return found


def test_workers_share_what_is_packed_also_with_a_worker_that_comes_later(server: Server) -> None:
    server.kill_worker()
    server.wait_ready()
    (first, *_), (second, *_) = [shared_weights(worker) for worker in server.workers()]
    assert first[0] == second[0]
    assert max(first[1], second[1]) > 20_000_000


def test_the_models_page_says_what_computes(server: Server) -> None:
    [model] = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["compute"] == INSTRUCTION_SET


def test_vectors_are_those_of_sentence_transformers(server: Server, reference: Reference) -> None:
    answer = httpx.post(
        f"{server.url}/v1/embeddings", json={"model": "minilm", "input": reference.texts[:20]}, timeout=60
    ).json()
    for item, vector in zip(answer["data"], reference.vectors, strict=False):
        assert item["embedding"] @ vector >= 0.9999


def test_workers_share_what_is_packed_of_a_file_that_has_changed(server: Server, own_path: str) -> None:
    before = server.workers()
    [(old, _)] = shared_weights(before[0])
    os.utime(own_path)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not {*before} & {*server.workers()}, "all workers are replaced")
    server.wait_ready()
    (first, *_), (second, *_) = [shared_weights(worker) for worker in server.workers()]
    assert first[0] == second[0] != old

    def n_open() -> int:
        files = Path(f"/proc/{server.process.pid}/fd").iterdir()
        return sum("memfd:embellama-weights" in os.path.realpath(file) for file in files)

    wait_until(lambda: n_open() == 1, "the old copy is given up")
