"""`RecentRequests`: requests of the last ten minutes, by seconds."""

from embellama_server.telemetry.recent import N_ERRORS, N_SECONDS, RecentRequests, Second
from embellama_server.telemetry.record import RequestRecord, Timeline
from hypothesis import given
from hypothesis import strategies as st


def record(
    ended: float, *, took_s: float = 0.1, status: int = 200, request_id: str = "", n_texts: int = 2
) -> RequestRecord:
    came = ended - took_s
    return RequestRecord(
        request_id=request_id,
        operation="embeddings",
        key="",
        client="",
        n_retries=0,
        path="/v1/embeddings",
        status=status,
        error="" if status in (0, 200) else "overloaded",
        asked_model="m",
        model="m",
        weights_sha256="",
        prompt="",
        prompt_hash="",
        dimensions=8,
        formats=(),
        n_texts=n_texts,
        n_tokens=4,
        n_truncated=0,
        n_cached_tokens=0,
        texts=(),
        times=Timeline(came, came, came, came, ended, ended),
    )


def test_a_second_has_its_requests_and_how_long_the_good_ones_took() -> None:
    recent = RecentRequests(now=10.5)
    for i in range(100):
        recent.add(record(11.2, took_s=(i + 1) / 1000))
    recent.add(record(11.9, took_s=60, status=503))
    recent.add(record(11.9, took_s=60, status=0))
    *_, before, last = recent.seconds(12.1)
    assert before == Second()
    assert (last.n_requests, last.n_failed, last.n_texts) == (102, 1, 200)
    assert last.ms is not None
    assert [round(value) for value in last.ms] == [50, 95, 99]


def test_seconds_without_requests_are_there_and_a_long_pause_leaves_none_but_those() -> None:
    recent = RecentRequests(now=0)
    recent.add(record(0.5))
    recent.add(record(3.5))
    assert [second.n_requests for second in recent.seconds(5.0)[-5:]] == [1, 0, 0, 1, 0]
    assert recent.n_closed == 5
    assert recent.seconds(10_000.0) == [Second()] * N_SECONDS
    assert recent.n_closed == 10_000


def test_the_last_errors_are_kept_with_their_ids() -> None:
    recent = RecentRequests(now=0)
    for i in range(N_ERRORS + 5):
        recent.add(record(0.5, status=503, request_id=str(i)))
    assert [error.request_id for error in recent.errors] == [str(i) for i in range(5, N_ERRORS + 5)]
    assert recent.n_errors == N_ERRORS + 5
    assert recent.errors[0].code == "overloaded"


@given(pauses=st.lists(st.floats(0, 20), max_size=25))
def test_every_request_is_in_one_second(pauses: list[float]) -> None:
    recent, now = RecentRequests(now=0), 0.0
    for pause in pauses:
        now += pause
        recent.add(record(now))
        assert len(recent.seconds(now)) == N_SECONDS
    assert sum(second.n_requests for second in recent.seconds(now + 1)) == len(pauses)
    assert recent.n_closed == int(now + 1)
