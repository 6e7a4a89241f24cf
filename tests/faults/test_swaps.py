"""A model that is to be loaded while the server runs cannot be: the one that serves goes on."""

from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import StartFaulty

pytestmark = pytest.mark.server


def test_workers_that_die_and_a_lack_of_memory_refuse_a_model(
    start_faulty: StartFaulty, tiny_path: str, tmp_path: Path
) -> None:
    flags = ("--model-path", tiny_path, "--models-dir", str(Path(tiny_path).parent), "--workers", "1")
    with start_faulty(*flags, hook="dies", constants=("models.WORKER_BYTES=1e9",)) as server:
        (tmp_path / "die").touch()
        workers = server.workers()
        for name, n_workers, told in (
            ("more", 2, "died before they computed"),
            ("tiny", 256, "are available"),
        ):
            settings = {"path": tiny_path, "num_workers": n_workers}
            answer = httpx.put(f"{server.url}/admin/models/{name}", json=settings, timeout=60)
            assert answer.status_code == 400
            assert told in answer.json()["error"]["message"]
            assert server.workers() == workers
        assert httpx.post(f"{server.url}/embed", json={"inputs": "red"}).status_code == 200
