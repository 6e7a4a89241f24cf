"""A server is told to stop, by whatever signal and at whatever moment; many clients ask at once."""

import asyncio
import signal
import socket
import time
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.conftest import BIN, Reference, StartServer, wait_until

pytestmark = [pytest.mark.server, pytest.mark.model]


def test_ctrl_c_in_a_terminal_reaches_workers_too_and_still_ends_cleanly(
    start_server: StartServer, tiny_path: str
) -> None:
    with start_server("--model-path", tiny_path, "--workers", "2") as server:
        for process in (*server.workers(), server.process):
            process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()


def test_ctrl_c_while_starting_ends_cleanly(start_server: StartServer, model_path: str) -> None:
    with start_server("--model-path", model_path, "--workers", "2", ready=False) as server:
        for process in (*server.workers(), server.process):
            process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.4, 0.7, 1.0, 1.5])
def test_hangups_while_starting_wait_until_there_are_workers(tiny_path: str, tmp_path: Path, seconds: float) -> None:
    log = tmp_path / "log"
    command = [str(BIN / "embellama-server"), "--model-path", tiny_path, "--workers", "2", "--port", "0"]
    with log.open("w") as stderr, psutil.Popen(command, stderr=stderr) as process:
        try:
            time.sleep(seconds)
            process.send_signal(signal.SIGHUP)
            wait_until(
                lambda: process.poll() is not None or log.read_text().count("is to be replaced") == 2,
                "it is obeyed",
                20,
            )
        finally:
            process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()


def test_workers_import_nothing_from_the_current_folder(
    start_server: StartServer, tiny_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit('a stranger was imported')")
    monkeypatch.chdir(tmp_path)
    with start_server("--model-path", tiny_path, "--workers", "1"):
        pass


def test_hangups_do_not_hold_up_the_end(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "2") as server:
        server.process.terminate()
        with suppress(psutil.NoSuchProcess):
            while server.process.poll() is None:
                server.process.send_signal(signal.SIGHUP)
                time.sleep(0.001)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()


def test_told_to_stop_while_a_worker_waits_to_be_started_again(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1") as server:
        for n in (1, 2, 3):  # the first is started again at once, later ones after a pause
            wait_until(lambda: len(server.workers()) == 1, "it runs")
            server.workers()[0].kill()
            wait_until(lambda n=n: server.log.read_text().count("died") == n, "the death is noticed")  # type: ignore[misc]
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_request_that_is_not_here_yet_does_not_hold_up_the_end(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", "--timeout-ms", "60000") as server:
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port)) as half:
            half.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 200, "the server has seen it")
            server.process.terminate()
            assert server.process.wait(timeout=30) == 0
            assert half.recv(1000).startswith(b"HTTP/1.1 503")
        assert "Traceback" not in server.log.read_text()


def test_told_to_stop_it_has_a_client_that_goes_on_asking_end_its_connection(
    start_server: StartServer, tiny_path: str
) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1") as server:
        url = httpx.URL(server.url)
        with closing(HTTPConnection(url.host, url.port)) as connection:
            connection.auto_open = 0  # it is one connection: one that is hung up on raises
            connection.connect()
            server.process.terminate()
            told = None
            while told != "close":
                connection.request("GET", "/livez")
                answer = connection.getresponse()
                assert answer.read() == b"ok"
                told = answer.getheader("connection")
        assert server.process.wait(timeout=30) == 0


@pytest.mark.parametrize("connections", ["kept", "new"])
def test_told_to_stop_it_answers_what_had_arrived_unread(
    start_server: StartServer, tiny_path: str, connections: str
) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1") as server, ExitStack() as stack:
        url = server.url.removeprefix("http://")
        clients = [stack.enter_context(closing(HTTPConnection(url))) for _ in range(8)]

        def ask() -> None:
            for client in clients:
                client.request("POST", "/v1/embeddings", b'{"model": "tiny", "input": "a"}')

        def statuses() -> set[int]:
            answers = [client.getresponse() for client in clients]
            return {answer.status for answer in answers if answer.read()}

        if connections == "kept":
            ask()
            assert statuses() == {200}
        server.process.suspend()
        ask()
        server.process.terminate()
        time.sleep(0.3)  # uvicorn looks for the signal every 0.1 s: that comes before it reads then
        server.process.resume()
        assert statuses() == {200}
        assert server.process.wait(timeout=30) == 0


@pytest.mark.timeout(180)
async def test_200_clients_each_get_the_vectors_of_their_own_texts(
    start_server: StartServer, model_path: str, reference: Reference
) -> None:
    with start_server("--model-path", model_path, "--workers", "2", "--cache-bytes", "0") as server:
        choose = np.random.default_rng(0)

        async def ask(client: httpx.AsyncClient) -> None:
            for _ in range(4):
                picked = choose.integers(0, 40, choose.integers(1, 6))
                body = {"model": "minilm", "input": [reference.texts[i] for i in picked]}
                answer = await client.post(f"{server.url}/v1/embeddings", json=body)
                assert answer.status_code == 200, answer.text
                rows = np.array([item["embedding"] for item in answer.json()["data"]])
                assert rows.shape == (len(picked), 384)
                assert np.sum(rows * reference.vectors[picked], axis=1).min() > 0.999

        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            await asyncio.gather(*(ask(client) for _ in range(200)))
