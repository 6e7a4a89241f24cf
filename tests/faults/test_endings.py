"""Told to stop, or killed: who was accepted is answered, and nobody is left."""

import contextlib
import re
import signal
import socket
from collections.abc import Iterator

import httpx
import numpy as np
import orjson
import psutil
import pytest

from tests.conftest import Reference, wait_until
from tests.faults.conftest import FaultyServer, StartFaulty
from tests.faults.raw import Answer, connected, embed, read_answer, request, wait_accepted, wait_hung_up

pytestmark = [pytest.mark.server, pytest.mark.model]

N_CLIENTS = 32


@contextlib.contextmanager
def accepted(server: FaultyServer, reference: Reference, n_texts: int = 4) -> Iterator[list[socket.socket]]:
    """Have clients ask, each for texts of its own, until the server has taken every request."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(N_CLIENTS)]
        for i, client in enumerate(clients):
            client.sendall(request(embed(reference.texts[i : i + n_texts], "minilm")))
        wait_accepted(server, clients)
        yield clients


def is_right(answer: Answer, reference: Reference, start: int, n_texts: int = 4) -> bool:
    rows = np.array([item["embedding"] for item in orjson.loads(answer.body)["data"]])
    return bool(np.sum(rows * reference.vectors[start : start + n_texts], axis=1).min() > 0.999)


@pytest.mark.parametrize(("number", "n_read"), [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, 1)])
def test_told_to_stop_under_load_it_answers_every_accepted_request(
    start_faulty: StartFaulty, model_path: str, reference: Reference, number: signal.Signals, n_read: int
) -> None:
    with start_faulty("--model-path", model_path, "--workers", "2") as server:
        family = [server.process, *server.process.children(recursive=True)]
        with accepted(server, reference) as clients:
            for client in clients[:n_read]:
                read_answer(client)
            server.process.send_signal(number)
            for i, client in enumerate(clients[n_read:], n_read):
                assert is_right(read_answer(client), reference, i)
        assert server.process.wait(timeout=30) == 0
        assert not psutil.wait_procs(family, timeout=30)[1]


def test_who_cannot_be_answered_in_time_gets_503_and_the_log_says_how_many(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-size", "4", "--drain-timeout-ms", "1200")
    with start_faulty(*flags, hook="slow") as server, accepted(server, reference) as clients:
        server.process.terminate()
        answers = [read_answer(client) for client in clients]
        refused = [answer for answer in answers if answer.status == 503]
        assert 0 < len(refused) < N_CLIENTS
        for i, answer in enumerate(answers):
            if answer.status == 200:
                assert is_right(answer, reference, i)
            else:
                assert orjson.loads(answer.body)["error"]["code"] == "unavailable"
        assert server.process.wait(timeout=30) == 0
        told = re.search(r"(\d+) accepted requests could not be answered in time", server.log.read_text())
        assert told, server.log.read_text()
        assert int(told[1]) == len(refused)


def test_a_second_signal_stops_at_once(start_faulty: StartFaulty, model_path: str, reference: Reference) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-tokens", "1", "--timeout-ms", "120000")
    with start_faulty(*flags, "--drain-timeout-ms", "120000", hook="slow") as server:
        with accepted(server, reference) as clients:  # a minute's work
            server.process.terminate()
            wait_until(lambda: "Shutting down" in server.log.read_text(), "the first signal is seen")
            server.process.terminate()
            assert server.process.wait(timeout=20) == 0
            said = [wait_hung_up(client) for client in clients]
        assert sum(answer.startswith(b"HTTP/1.1 503") for answer in said) > N_CLIENTS // 2


def test_a_client_that_does_not_read_does_not_hold_up_the_end(start_faulty: StartFaulty, tiny_path: str) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--drain-timeout-ms", "1000")
    with start_faulty(*flags) as server, connected(server) as client:
        for _ in range(10):
            client.sendall(request(embed(["red"] * 2048)))
        wait_until(lambda: server.n_batches() > 100, "it works on the answers")
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0


def test_a_killed_front_leaves_no_worker_whatever_they_were_doing(start_faulty: StartFaulty, model_path: str) -> None:
    with start_faulty("--model-path", model_path, "--workers", "2", hook="hangs") as server:
        with connected(server) as client:
            client.sendall(request(embed("poison", "minilm")))
            wait_until(lambda: server.n_batches() == 1, "a worker hangs")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(server.workers()) == 3, "another one loads")
            workers = server.workers()
            server.process.kill()
            assert not psutil.wait_procs(workers, timeout=10)[1]
        with pytest.raises(httpx.ConnectError):
            server.health()
