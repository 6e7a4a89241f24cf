"""A batch goes on after any end of its server, and ends with the bytes of one that was not disturbed."""

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Server, running_server, wait_until
from tests.server.jobs.conftest import Client, lines

pytestmark = pytest.mark.server

N_KILLS = 4


def test_a_batch_of_a_killed_server_ends_with_the_bytes_of_an_undisturbed_one(tiny_path: str, tmp_path: Path) -> None:
    data = tmp_path / "data"

    @contextlib.contextmanager
    def serving(*, ready: bool) -> Iterator[Server]:
        flags = ("--model-path", tiny_path, "--workers", "2", "--n-threads", "1", "--data-dir", str(data))
        with running_server(tmp_path / "log", *flags, ready=ready) as server:
            yield server

    choose = random.Random(0)
    with serving(ready=False) as server, Client(server) as client:
        batch = client.begin(lines(4000))
    (data / "uploads" / "half").write_bytes(b"of a file")
    record = data / "batches" / f"{batch.id}.json"
    for number in range(N_KILLS):
        before = record.read_bytes()
        with serving(ready=False) as server:
            if number % 3:  # else before anything is computed, or just then
                wait_until(lambda before=before: record.read_bytes() != before, "a part is written")  # type: ignore[misc]
            time.sleep(choose.random() / 5)
            server.process.kill()
            wait_until(lambda server=server: not server.workers(), "its workers are gone")  # type: ignore[misc]
    assert not list((data / "uploads").iterdir())
    with serving(ready=True) as server, Client(server) as client:
        disturbed = client.wait(client.openai.batches.retrieve(batch.id))
        whole = client.run(lines(4000))
        assert disturbed.request_counts == whole.request_counts
        assert client.read(disturbed.output_file_id) == client.read(whole.output_file_id)
    assert not list(data.glob("*/*.partial"))


def test_a_folder_has_one_server(tiny_path: str, tmp_path: Path) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--data-dir", str(tmp_path / "data"))
    with (
        running_server(tmp_path / "log", *flags, ready=False),
        pytest.raises(AssertionError, match="another server uses it"),
        running_server(tmp_path / "other", *flags),
    ):
        pass
    assert os.listdir(tmp_path / "data" / "batches") == []
