"""More work than can wait: refused at once, with an estimate of when to come again; what was accepted is answered."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import Reference, wait_until
from tests.faults.conftest import FaultyServer, StartFaulty, are_vectors_of

pytestmark = [pytest.mark.server, pytest.mark.model]

N_CLIENTS = 16


def flood(server: FaultyServer, reference: Reference, n_texts: int) -> list[httpx.Response]:
    """Have clients ask all at once; return the answers of those that were refused, after the others were checked."""
    with ThreadPoolExecutor(N_CLIENTS) as threads:
        answers = list(threads.map(lambda _: server.post(reference.texts[:n_texts]), range(N_CLIENTS)))
    for answer in answers:
        assert answer.status_code in (200, 503), answer.text
        assert answer.status_code == 503 or are_vectors_of(answer, reference, range(n_texts))
    assert any(answer.status_code == 200 for answer in answers)
    return [answer for answer in answers if answer.status_code == 503]


# Every text is a batch of its own, and takes a fifth of a second.
ONE_BY_ONE = ("--workers", "1", "--max-batch-tokens", "1", "--timeout-ms", "120000")


def longest_wait(refused: list[httpx.Response], reason: str) -> int:
    """Return the longest Retry-After, in seconds, of many that were refused for a reason."""
    assert len(refused) >= N_CLIENTS // 2
    for answer in refused:
        assert answer.json()["error"]["code"] == "overloaded"
        assert reason in answer.json()["error"]["message"]
    return max(int(answer.headers["retry-after"]) for answer in refused)


def test_a_full_queue_answers_503_with_an_estimate_that_grows_with_what_waits(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    with start_faulty("--model-path", model_path, "--queue-size", "3", *ONE_BY_ONE, hook="slow") as server:
        server.post(reference.texts[:8])  # so that it is known how long a text takes
        few, many = (longest_wait(flood(server, reference, n_texts), "3 requests are waiting") for n_texts in (1, 6))
        assert 1 <= few < many <= 60


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--queue-tokens", "300"), "tokens are waiting already; 300 are the most allowed"),
        (("--queue-bytes", "40000"), "bytes of requests are held already; 40000 are the most allowed"),
    ],
)
def test_tokens_and_bytes_have_bounds_too(
    start_faulty: StartFaulty, model_path: str, reference: Reference, flags: tuple[str, ...], reason: str
) -> None:
    with start_faulty("--model-path", model_path, *flags, *ONE_BY_ONE, hook="slow") as server:
        server.post(reference.texts[:8])
        assert longest_wait(flood(server, reference, 8), reason) >= 2, "it is an estimate"


def test_a_request_that_cannot_make_its_deadline_is_refused_at_once(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-tokens", "1", "--timeout-ms", "5000")
    with start_faulty(*flags, hook="slow") as server:
        server.post("a")  # so that it is known how long a text takes
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(server.post, ["a"] * 10)
            wait_until(lambda: server.n_batches() >= 2, "another is being computed")
            refused = server.post(["b"] * 12)
            assert other.result().status_code == 200
        assert refused.status_code == 503
        assert "but 5.0 s are left of timeout_ms" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert server.n_batches() == 11, "nothing of it was computed"
        assert server.post(["b"] * 12).status_code == 200, "the machine is idle"
        assert are_vectors_of(server.post(reference.texts[0]), reference, [0])


def test_a_request_that_an_idle_machine_could_not_do_is_not_asked_to_come_again(
    start_faulty: StartFaulty, model_path: str
) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-tokens", "1", "--timeout-ms", "5000")
    with start_faulty(*flags, hook="slow") as server:
        server.post("a")  # so that it is known how long a text takes
        refused = server.post(["a"] * 100)
        assert refused.status_code == 400
        assert "retry-after" not in refused.headers
        error = refused.json()["error"]
        found = re.search(r"has 300 tokens; about (\d+) can be computed here within timeout_ms", error["message"])
        assert found, error
        assert (error["code"], error["param"]) == ("max_tokens_per_request", "input")
        assert server.n_batches() == 1, "nothing of it was computed"
        n_texts = int(found[1]) // 3
        assert 10 < n_texts < 25, "0.2 s each, and some of the 5 s to spare"
        assert server.post(["a"] * n_texts).status_code == 200
