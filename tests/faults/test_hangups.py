"""Clients that hang up cost nothing more, and long requests do not keep short ones out."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.conftest import Reference, wait_until
from tests.faults.conftest import FaultyServer, StartFaulty, are_vectors_of
from tests.faults.raw import connected, embed, request, wait_accepted

pytestmark = [pytest.mark.server, pytest.mark.model]


def n_connections(server: FaultyServer) -> int:
    """Connections the front has with clients."""
    listener = server.url.rpartition(":")[2]
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and str(connection.laddr.port) == listener
        for connection in server.process.net_connections("tcp")
    )


@pytest.mark.parametrize("n_requests", [1, 3])
def test_a_hundred_clients_that_hang_up_cost_no_batch_that_no_worker_held(
    start_faulty: StartFaulty, model_path: str, reference: Reference, n_requests: int
) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-size", "4")
    with start_faulty(*flags, hook="slow") as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(server)) for _ in range(100)]
            for client in clients:
                client.sendall(request(embed(reference.texts[:8], "minilm")) * n_requests)
            wait_accepted(server, clients)
            n_before = server.n_batches()
        wait_until(lambda: n_connections(server) == 0, "the server has seen that they are gone")
        n_wasted = server.n_batches() - n_before
        assert are_vectors_of(server.post(reference.texts[:1]), reference, [0])
        # Besides its own: one that was running, and one in the worker's queue.
        assert server.n_batches() - n_before - n_wasted <= 1 + 2


def test_one_text_is_answered_while_another_client_streams_2048_text_requests(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    flags = ("--model-path", model_path, "--workers", "2", "--timeout-ms", "120000")
    with start_faulty(*flags) as server, ThreadPoolExecutor(2) as threads:
        streams = [threads.submit(server.post, ["a"] * 2048) for _ in range(2)]
        wait_until(lambda: server.n_batches() > 0, "they are being computed")
        n_batches = []
        for i in range(3):
            before = server.n_batches()
            assert are_vectors_of(server.post(reference.texts[i]), reference, [i])
            n_batches.append(server.n_batches() - before)
            assert not all(stream.done() for stream in streams)
        # Two that each worker held when it came, and its own; a few more may follow before the count is read.
        assert min(n_batches) <= 12
        assert all(stream.result().status_code == 200 for stream in streams)
