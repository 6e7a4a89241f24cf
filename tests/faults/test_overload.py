"""More work than can wait: refused at once, with an estimate of when to come again; what was accepted is answered."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import Reference
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


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--queue-size", "3"), "3 requests are waiting already, the most allowed"),
        (("--queue-tokens", "30"), "tokens are waiting already; 30 are the most allowed"),
        (("--queue-bytes", "8000"), "bytes of requests are held already; 8000 are the most allowed"),
    ],
)
def test_every_bound_answers_503_with_an_estimate_that_grows_with_what_waits(
    start_faulty: StartFaulty, model_path: str, reference: Reference, flags: tuple[str, ...], reason: str
) -> None:
    # Every text is a batch, and takes half a second.
    more = ("--model-path", model_path, "--workers", "1", "--max-batch-size", "1", "--timeout-ms", "120000")
    with start_faulty(*more, *flags, hook="slow") as server:
        server.post(reference.texts[:8])  # so that it is known how long a text takes
        longest = []
        for n_texts in (1, 4):
            refused = flood(server, reference, n_texts)
            assert len(refused) >= N_CLIENTS // 2
            for answer in refused:
                assert answer.json()["error"]["code"] == "overloaded"
                assert reason in answer.json()["error"]["message"]
            longest.append(max(int(answer.headers["retry-after"]) for answer in refused))
        assert 1 <= longest[0] < longest[1] <= 60


def test_a_request_that_cannot_make_its_deadline_is_refused_at_once(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-size", "1", "--timeout-ms", "5000")
    with start_faulty(*flags, hook="slow") as server:
        server.post("a")
        refused = server.post(["a"] * 100)
        assert refused.status_code == 503
        assert "but 5.0 s are left of timeout_ms" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 20
        assert server.n_batches() == 1, "nothing of it was computed"
        assert are_vectors_of(server.post(reference.texts[0]), reference, [0])
