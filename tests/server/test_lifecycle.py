"""What happens to requests and processes when something dies, floods in or is told to stop."""

import asyncio
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection

import httpx
import numpy as np
import psutil
import pytest

from tests.conftest import Reference, Server, StartServer, wait_until

pytestmark = [pytest.mark.server, pytest.mark.model]


class Crowd:
    """Clients that keep asking for known vectors, and check every answer."""

    def __init__(self, server: Server, reference: Reference, n_clients: int):
        self.server, self.reference = server, reference
        self.statuses: Counter[int] = Counter()
        self.wrong = 0
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(n_clients)
        self._clients = [self._threads.submit(self._ask, seed) for seed in range(n_clients)]

    def _ask(self, seed: int) -> None:
        choose = np.random.default_rng(seed)
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                picked = choose.integers(0, 40, choose.integers(1, 9))
                body = {"model": "minilm", "input": [self.reference.texts[i] for i in picked]}
                answer = client.post(f"{self.server.url}/v1/embeddings", json=body)
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    rows = np.array([item["embedding"] for item in answer.json()["data"]])
                    cosines = np.sum(rows * self.reference.vectors[picked], axis=1)
                    self.wrong += len(rows) != len(picked) or cosines.min() < 0.999

    def wait_answers(self, n: int) -> None:
        """Wait for `n` more answers."""
        target = self.statuses.total() + n
        wait_until(lambda: self.statuses.total() >= target, f"{n} more answers came")

    def stop(self) -> None:
        """Stop asking and wait for the last answers."""
        self._stop.set()
        for client in self._clients:
            client.result()
        self._threads.shutdown()


def test_no_request_fails_when_workers_are_killed(
    start_server: StartServer, model_path: str, reference: Reference
) -> None:
    with start_server("--model-path", model_path, "--workers", "2") as server:
        crowd = Crowd(server, reference, 8)
        for _ in range(3):
            crowd.wait_answers(20)
            server.kill_worker()
            # One worker is enough to go on.
            assert httpx.get(f"{server.url}/health").status_code == 200
            server.wait_ready()
        crowd.wait_answers(20)
        crowd.stop()
        assert set(crowd.statuses) == {200}
        assert crowd.wrong == 0


def test_losing_every_worker_at_once_loses_no_accepted_request(
    start_server: StartServer, model_path: str, reference: Reference
) -> None:
    with start_server("--model-path", model_path, "--workers", "2") as server:
        crowd = Crowd(server, reference, 8)
        crowd.wait_answers(20)
        for worker in server.workers():
            worker.kill()
        server.wait_ready()
        crowd.wait_answers(20)
        crowd.stop()
        # With no worker at all, new requests are refused; those accepted before are answered.
        assert set(crowd.statuses) <= {200, 503}
        assert crowd.wrong == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_it_accepted_and_leaves_nobody(
    start_server: StartServer, model_path: str, reference: Reference, number: signal.Signals
) -> None:
    with start_server("--model-path", model_path, "--workers", "2") as server:
        body = {"model": "minilm", "input": reference.texts[:40]}
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(httpx.post, f"{server.url}/v1/embeddings", json=body, timeout=60) for _ in range(8)]
            wait_until(lambda: any(call.done() for call in calls), "the first answer came")
            family = [server.process, *server.process.children(recursive=True)]
            server.process.send_signal(number)
            for call in calls:
                rows = np.array([item["embedding"] for item in call.result().json()["data"]])
                assert np.sum(rows * reference.vectors[:40], axis=1).min() > 0.999
        assert server.process.wait(timeout=30) == 0
        assert not psutil.wait_procs(family, timeout=30)[1]


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


def test_workers_notice_that_the_front_was_killed(start_server: StartServer, model_path: str) -> None:
    with start_server("--model-path", model_path, "--workers", "2") as server:
        workers = server.workers()
        server.process.kill()
        gone, _ = psutil.wait_procs(workers, timeout=10)
        assert len(gone) == 2


async def test_a_flood_is_refused_with_retry_after_and_the_accepted_succeed(
    start_server: StartServer, model_path: str, reference: Reference
) -> None:
    with start_server("--model-path", model_path, "--workers", "1", "--queue-size", "4") as server:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100), timeout=60) as client:

            async def ask(i: int) -> httpx.Response:
                body = {"model": "minilm", "input": [reference.texts[i % 40]] * 20}
                return await client.post(f"{server.url}/v1/embeddings", json=body)

            answers = await asyncio.gather(*(ask(i) for i in range(100)))
        refused = [answer for answer in answers if answer.status_code == 503]
        accepted = [(i, answer) for i, answer in enumerate(answers) if answer.status_code == 200]
        assert len(refused) + len(accepted) == 100
        assert len(refused) > 50
        assert len(accepted) >= 4
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"
        for i, answer in accepted:
            rows = np.array([item["embedding"] for item in answer.json()["data"]])
            assert (rows @ reference.vectors[i % 40]).min() > 0.999


@pytest.mark.timeout(180)
async def test_200_clients_each_get_the_vectors_of_their_own_texts(
    start_server: StartServer, model_path: str, reference: Reference
) -> None:
    with start_server("--model-path", model_path, "--workers", "2") as server:
        n_answers = 0
        end = asyncio.get_running_loop().time() + 30
        choose = np.random.default_rng(0)

        async def ask(client: httpx.AsyncClient) -> None:
            nonlocal n_answers
            while asyncio.get_running_loop().time() < end:
                picked = choose.integers(0, 40, choose.integers(1, 6))
                body = {"model": "minilm", "input": [reference.texts[i] for i in picked]}
                answer = await client.post(f"{server.url}/v1/embeddings", json=body)
                assert answer.status_code == 200, answer.text
                rows = np.array([item["embedding"] for item in answer.json()["data"]])
                assert rows.shape == (len(picked), 384)
                assert np.sum(rows * reference.vectors[picked], axis=1).min() > 0.999
                n_answers += 1

        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            await asyncio.gather(*(ask(client) for _ in range(200)))
        assert n_answers >= 200


async def test_a_client_that_hangs_up_takes_its_queued_work_with_it(start_server: StartServer, model_path: str) -> None:
    with start_server("--model-path", model_path, "--workers", "1", "--timeout-ms", "300000") as server:
        async with httpx.AsyncClient() as client:
            url = f"{server.url}/v1/embeddings"
            # Minutes of work, were it done to the end.
            huge = {"model": "minilm", "input": ["word " * 400] * 2048}
            with suppress(httpx.ReadTimeout):
                await client.post(url, json=huge, timeout=httpx.Timeout(60, read=1))
            answer = await client.post(url, json={"model": "minilm", "input": "a"}, timeout=60)
            assert answer.status_code == 200
        # Had the huge request still been in the room, stopping would wait for it for minutes.
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
