"""The account of open requests."""

import asyncio
import math
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embellama.backend import Times
from embellama.batch import Batch, RowKind, Rows, Tokens
from embellama.errors import DeadlineExceeded, EmbeddingFailed, Overloaded, Unavailable
from embellama.ledger import Ledger
from embellama.scheduler import Assignment, Limits, Scheduler

DIM = 2


class Pool:
    """A ledger and a scheduler with one worker, driven by hand."""

    def __init__(self, max_batch_tokens: int = 8, max_waiting: int | None = None):
        limits = Limits(
            max_batch_tokens=max_batch_tokens,
            max_batch_size=64,
            n_threads_busy=1,
            n_threads_alone=1,
            max_waiting=max_waiting,
        )
        self.scheduler = Scheduler(limits)
        self.scheduler.worker_ready(0)
        self.ledger: Ledger[Future[Rows]] = Ledger(self.scheduler, DIM, Future)

    def compute(self) -> bool:
        """Compute the next batch, if there is one, and settle what is over."""
        for assignment in self.scheduler.assign():
            self.answer(assignment)
            return True
        return False

    def answer(self, assignment: Assignment) -> None:
        batch = Batch.join(*self.ledger.texts(assignment))
        answer = self.scheduler.complete(assignment.batch, assignment.worker)
        for request in self.ledger.put(answer, batch, rows_of(batch)):
            request.settle()


def text(number: int, n_tokens: int = 3) -> Tokens:
    return np.full(n_tokens, number, np.int32)


def expected_rows(ids: Tokens, kind: RowKind) -> list[list[int]]:
    """Make a text's rows: they tell which text they are of, and its kind or, of a token's, its place."""
    places = range(len(ids)) if kind == RowKind.TOKEN else [-1 - kind]
    return [[int(ids[0]), place] for place in places]


def rows_of(batch: Batch) -> Rows:
    """Make the rows of each text, as its kind wants them."""
    rows: list[list[int]] = []
    for i, ids in enumerate(np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])):
        kind = RowKind.TEXT if batch.kinds is None else RowKind(batch.kinds[i])
        rows += expected_rows(ids, kind)
    return np.array(rows, np.float32)


def test_a_request_is_answered_when_its_last_row_has_come() -> None:
    pool = Pool()
    future = pool.ledger.open([text(1), text(2), text(3), text(4)]).future
    assert pool.compute()
    assert not future.done()
    while pool.compute():
        pass
    assert future.result(timeout=0).tolist() == [[1, -1], [2, -1], [3, -1], [4, -1]]
    assert len(pool.ledger) == 0


some_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=6)


@given(st.lists(st.tuples(some_lengths, st.sampled_from(RowKind)), min_size=1, max_size=8))
def test_every_request_gets_its_own_kind_of_rows_in_the_order_of_its_texts(
    shapes: list[tuple[list[int], RowKind]],
) -> None:
    pool = Pool()
    numbers = iter(range(10_000))
    requests = [([text(next(numbers), n) for n in lengths], kind) for lengths, kind in shapes]
    futures = [pool.ledger.open(texts, kind=kind).future for texts, kind in requests]
    while pool.compute():
        pass
    for (texts, kind), future in zip(requests, futures, strict=True):
        expected = [row for ids in texts for row in expected_rows(ids, kind)]
        assert future.result(timeout=0).tolist() == expected


def test_a_request_without_texts_needs_nobody() -> None:
    pool = Pool()
    request = pool.ledger.open([])
    request.settle()
    assert request.future.result(timeout=0).shape == (0, DIM)
    assert len(pool.ledger) == 0


def test_a_full_waiting_room_leaves_nothing_in_the_ledger() -> None:
    pool = Pool(max_waiting=1)
    pool.ledger.open([text(1)])
    with pytest.raises(Overloaded):
        pool.ledger.open([text(2)])
    assert len(pool.ledger) == 1


def test_rows_of_a_cancelled_request_are_thrown_away() -> None:
    pool = Pool(max_batch_tokens=100)
    gone, stays = pool.ledger.open([text(1)]), pool.ledger.open([text(2)])
    (assignment,) = pool.scheduler.assign()
    batch = Batch.join(*pool.ledger.texts(assignment))
    pool.ledger.cancel(gone.id)
    for request in pool.ledger.put(pool.scheduler.complete(assignment.batch, 0), batch, rows_of(batch)):
        request.settle()
    assert not gone.future.done()
    assert stays.future.result(timeout=0).tolist() == [[2, -1]]


def test_a_future_cancelled_while_its_batch_runs_is_settled_without_an_error() -> None:
    pool = Pool()
    request = pool.ledger.open([text(1)])
    request.future.cancel()
    assert pool.compute()
    assert request.future.cancelled()


def test_a_failure_names_the_position_of_the_text() -> None:
    pool = Pool(max_batch_tokens=3)
    request = pool.ledger.open([text(1), text(2)])
    (assignment,) = pool.scheduler.assign()
    other = pool.ledger.open([text(3)])
    position = assignment.texts[0].position
    for failed in pool.ledger.fail(pool.scheduler.fail(assignment.batch, 0), "it is not finite"):
        failed.settle()
    error = request.future.exception(timeout=0)
    assert isinstance(error, EmbeddingFailed)
    assert (error.index, error.reason) == (position, "it is not finite")
    while pool.compute():
        pass
    assert other.future.done()


def test_late_requests_fail_and_others_do_not() -> None:
    pool = Pool()
    late, early = pool.ledger.open([text(1)], deadline=10.0), pool.ledger.open([text(2)], deadline=20.0)
    assert pool.ledger.expire(9.9, 500) == []
    for request in pool.ledger.expire(10.0, 500):
        request.settle()
    assert isinstance(late.future.exception(timeout=0), DeadlineExceeded)
    assert str(late.future.exception(timeout=0)) == "no answer within 500 ms"
    assert not early.future.done()


def test_closing_fails_what_is_open() -> None:
    pool = Pool()
    request = pool.ledger.open([text(1)])
    for open_one in pool.ledger.close("it ends"):
        open_one.settle()
    assert isinstance(request.future.exception(timeout=0), Unavailable)
    assert not pool.compute()


def test_times_tell_when_the_first_text_was_given_to_a_worker() -> None:
    pool, times = Pool(), Times()
    pool.ledger.open([text(i) for i in range(1, 5)], times=times)
    assert times.started == 0
    pool.compute()
    first = times.started
    pool.compute()
    assert times.started == first > 0


def test_progress_counts_texts_and_may_fail() -> None:
    pool = Pool()
    seen: list[tuple[int, int]] = []

    def failing(n_done: int, n: int) -> None:
        seen.append((n_done, n))
        raise SystemExit

    counted: list[tuple[int, int]] = []
    fails = pool.ledger.open([text(i) for i in range(1, 5)], progress=failing)
    works = pool.ledger.open([text(i) for i in range(1, 5)], progress=lambda *of: counted.append(of))
    while pool.compute():
        pass
    assert fails.future.done()
    assert works.future.done()
    assert len(seen) == 1
    assert counted[-1] == (4, 4)
    assert counted == sorted(set(counted))


async def test_it_keeps_futures_of_an_event_loop_too() -> None:
    loop = asyncio.get_running_loop()
    pool = Pool()
    ledger: Ledger[asyncio.Future[Rows]] = Ledger(pool.scheduler, DIM, loop.create_future)
    request, cancelled = ledger.open([text(1)], deadline=math.inf), ledger.open([text(2)])
    cancelled.future.cancel()
    for assignment in pool.scheduler.assign():
        batch = Batch.join(*ledger.texts(assignment))
        for touched in ledger.put(pool.scheduler.complete(assignment.batch, 0), batch, rows_of(batch)):
            touched.settle()
    assert (await request.future).tolist() == [[1, -1]]


def test_what_there_is_no_room_for_takes_no_memory() -> None:
    pool = Pool(max_waiting=0)
    pool.ledger._dim = 2**40  # rows of more memory than there is
    with pytest.raises(Overloaded):
        pool.ledger.open([text(1)])


def test_where_there_is_no_memory_for_its_rows_nothing_of_a_request_waits() -> None:
    pool = Pool()
    pool.ledger._dim = 2**60
    with pytest.raises((MemoryError, ValueError)):
        pool.ledger.open([text(1)])
    assert (len(pool.ledger), pool.scheduler.n_waiting, list(pool.scheduler.assign())) == (0, 0, [])


def test_a_request_that_was_cancelled_hears_no_more_of_its_progress() -> None:
    pool, told = Pool(), list[int]()
    request = pool.ledger.open([text(number) for number in range(4)], progress=lambda n, _: told.append(n))
    pool.compute()
    n_told = len(told)
    (assignment,) = pool.scheduler.assign()
    request.future.cancel()
    pool.answer(assignment)
    assert (n_told, len(told)) == (1, 1)
