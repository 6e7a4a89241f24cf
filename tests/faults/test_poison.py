"""Texts that end a worker, hang it, or get no vector, in batches with other clients' texts: only they may fail."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import Reference
from tests.faults.conftest import N_CLIENTS, FaultyServer, StartFaulty, are_vectors_of, run_server
from tests.tiny import write_bert

pytestmark = [pytest.mark.server, pytest.mark.model]

# The fault is known by a token: with another word beside it, it is another text.
POISON = "poison %d"

# The clients that send one.
POISONERS = (3, 19)


def ask_together(server: FaultyServer, reference: Reference) -> list[httpx.Response]:
    """Have 32 clients ask for 32 short texts each at once; one text of two of them is marked.

    Returns the answers to those, after the others were checked.
    """
    short = [i for i, ids in enumerate(reference.ids[:40]) if len(ids) <= 8]

    def picked(client: int) -> list[int]:
        return [short[(client + i) % len(short)] for i in range(N_CLIENTS)]

    def ask(client: int) -> httpx.Response:
        texts = [reference.texts[i] for i in picked(client)]
        if client in POISONERS:
            texts[client] = POISON % client
        return server.post(texts)

    with ThreadPoolExecutor(N_CLIENTS) as threads:
        answers = list(threads.map(ask, range(N_CLIENTS)))
    for client, answer in enumerate(answers):
        if client not in POISONERS:
            assert answer.status_code == 200, answer.text
            assert are_vectors_of(answer, reference, picked(client))
    return [answers[client] for client in POISONERS]


def assert_named(answers: list[httpx.Response]) -> None:
    for client, answer in zip(POISONERS, answers, strict=True):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (500, "model_error", "input")
        assert error["index"] == client


@pytest.mark.parametrize("hook", ["raises", "not_a_number", "zeros"])
def test_exactly_the_requests_with_a_text_that_gets_no_vector_fail(
    start_faulty: StartFaulty, model_path: str, reference: Reference, hook: str
) -> None:
    with start_faulty("--model-path", model_path, "--workers", "2", "--timeout-ms", "120000", hook=hook) as server:
        before = server.workers()
        assert_named(ask_together(server, reference))
        assert server.workers() == before, "nobody died of it"


@pytest.mark.parametrize("hook", ["aborts", "hangs"])
def test_exactly_the_requests_with_a_text_that_kills_fail_and_it_kills_no_more(
    start_faulty: StartFaulty, model_path: str, reference: Reference, hook: str
) -> None:
    flags = ("--model-path", model_path, "--workers", "2", "--timeout-ms", "120000", "--worker-timeout-ms", "300")
    with start_faulty(*flags, hook=hook) as server:
        assert server.post(reference.texts[:40]).status_code == 200  # so that it is known how long a batch takes
        assert_named(ask_together(server, reference))
        server.wait_ready()
        workers, n_batches = server.workers(), server.n_batches()
        for client in POISONERS:
            refused = server.post(["a", POISON % client])
            assert (refused.status_code, refused.json()["error"]["index"]) == (500, 1)
            assert "died on it not long ago" in refused.json()["error"]["message"]
        assert (server.workers(), server.n_batches()) == (workers, n_batches), "not even tried"
        assert are_vectors_of(server.post(reference.texts[:40]), reference, range(40))


def test_a_text_that_fails_once_is_computed_on_a_fresh_context(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    with start_faulty("--model-path", model_path, "--workers", "1", hook="fails_once") as server:
        texts = [*reference.texts[:10], "poison"]
        answer = server.post(texts)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 11
        assert are_vectors_of(server.post(texts[:10]), reference, range(10))
        assert "failed on a batch" in server.log.read_text(), "with others it did fail"


def test_a_model_of_zeros_serves_nobody(tmp_path: Path) -> None:
    result = run_server("--model-path", str(write_bert(tmp_path / "zeros.gguf", zero=True)), "--workers", "2")
    assert result.returncode == 1
    assert "all zeros" in result.stderr
    assert "Traceback" not in result.stderr
