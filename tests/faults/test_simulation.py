"""The dispatcher and its supervisor against simulated workers that die, hang, fail, drift, grow and answer twice."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from embellama_server.workers.dispatcher import TooManyForDeadline
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from embellama.backend import Caller
from embellama.batch import Rows, Tokens
from embellama.errors import DeadlineExceeded, EmbeddingFailed, Overloaded, Unavailable
from tests.faults.simulation import FAILS, HANGS, KILLS, Pool, SimulatedProcess, row_of

QUEUE_SIZE, QUEUE_TOKENS = 5, 600
POISONS = (KILLS, FAILS, HANGS)


def text(n_tokens: int, first: int = 0) -> Tokens:
    return np.arange(first, first + n_tokens, dtype=np.int32)


class PoolMachine(RuleBasedStateMachine):
    """Requests come and go while everything goes wrong in every order; each is answered once, and rightly."""

    @initialize()
    def start(self) -> None:
        self.pool = Pool(queue_size=QUEUE_SIZE, queue_tokens=QUEUE_TOKENS, max_worker_memory=1000)
        self.open: dict[asyncio.Future[Rows], tuple[list[Tokens], float]] = {}
        self.pool.work(0.1)

    def check_answers(self) -> None:
        for future in [future for future in self.open if future.done()]:
            texts, deadline = self.open.pop(future)
            error = future.exception()
            if error is None:
                np.testing.assert_array_equal(future.result(), [row_of(text) for text in texts])
            elif isinstance(error, EmbeddingFailed):
                assert self.is_suspect(texts[error.index], POISONS)
            else:
                assert isinstance(error, DeadlineExceeded)
                assert self.pool.loop.now >= deadline

    def is_suspect(self, text: Tokens, poisons: tuple[int, ...]) -> bool:
        """Whether a text is at fault, or was there too often when a process died."""
        return bool(np.isin(text, poisons).any()) or self.pool.n_deaths[text.tobytes()] >= 2

    def process(self, choice: int) -> SimulatedProcess | None:
        processes = self.pool.processes
        return processes[choice % len(processes)] if processes else None

    @rule(
        lengths=st.lists(st.integers(1, 150), min_size=1, max_size=12),
        poison=st.sampled_from([*POISONS, *[None] * 6]),
        first=st.integers(0, 800),
        patience=st.floats(0.1, 60),
    )
    def submit(self, lengths: list[int], poison: int | None, first: int, patience: float) -> None:
        texts = [text(n, first) for n in lengths]
        if poison:
            texts[-1] = np.array([poison, first], np.int32)
        deadline = self.pool.loop.now + patience
        try:
            self.open[self.pool.submit(texts, patience)] = texts, deadline
        except Overloaded as error:
            refusal: Exception = error
            right = 1 <= error.retry_after_s <= 60
        except Unavailable as error:
            refusal, right = error, self.pool.dispatcher.n_ready == 0
        except TooManyForDeadline as error:
            refusal, right = error, sum(map(len, texts)) == error.n_tokens > error.limit
        except EmbeddingFailed as error:
            refusal, right = error, self.is_suspect(texts[error.index], (KILLS, HANGS))
        else:
            return
        assert right, refusal

    @rule(choice=st.integers(0, 7), n_answers=st.sampled_from([1, 1, 1, 2]))
    def work(self, choice: int, n_answers: int) -> None:
        if process := self.process(choice):
            self.pool.call(lambda: process.work(n_answers))

    @rule(seconds=st.floats(0.02, 1))
    def all_work(self, seconds: float) -> None:
        self.pool.work(seconds)

    @rule(choice=st.integers(0, 7))
    def die(self, choice: int) -> None:
        if process := self.process(choice):
            self.pool.call(process.die)

    @rule(choice=st.integers(0, 7))
    def hang(self, choice: int) -> None:
        if process := self.process(choice):
            process.hangs = True

    @rule(choice=st.integers(0, 7))
    def grow(self, choice: int) -> None:
        if process := self.process(choice):
            process.memory = 2000

    @rule()
    def restart_workers(self) -> None:
        self.pool.restart_workers()

    @rule(ailment=st.sampled_from(["other_model", "drifting", "no_process", "dies_on_load"]), on=st.booleans())
    def ail(self, ailment: str, on: bool) -> None:
        setattr(self.pool, ailment, on)

    @rule(error=st.sampled_from(["", "the file is gone"]))
    def lose_the_file(self, error: str) -> None:
        self.pool.load_error = error

    @rule(choice=st.integers(0, 99))
    def hang_up(self, choice: int) -> None:
        if self.open:
            future = list(self.open)[choice % len(self.open)]
            del self.open[future]
            self.pool.call(future.cancel)

    @rule(seconds=st.floats(0.01, 100))
    def wait(self, seconds: float) -> None:
        self.pool.wait(seconds)

    @invariant()
    def answers_are_right_and_bounds_kept(self) -> None:
        self.check_answers()
        assert not self.pool.loop.errors
        scheduler = self.pool.dispatcher._scheduler
        assert self.pool.dispatcher.state.n_open == len(self.open)
        assert scheduler.n_waiting <= QUEUE_SIZE
        assert scheduler.waiting_tokens <= QUEUE_TOKENS or scheduler.n_waiting == 1
        # Not those that are done and have yet to go: a process that hangs is given 5 s for that.
        serving = [state for state in self.pool.worker_states() if state in ("starting", "ready")]
        assert len(serving) <= 2 * 3, "each worker has one successor at most"

    def teardown(self) -> None:
        """Once nothing ails them, as many workers as asked for serve, and everything is answered."""
        try:
            self.check_recovery()
        finally:
            self.pool.close()

    def check_recovery(self) -> None:
        self.pool.heal()
        self.pool.work(650, every=0.9)  # a process that hangs while it loads is given 600 s
        self.check_answers()
        assert not self.open
        assert self.pool.dispatcher.state.status == "ok"
        assert len(self.pool.processes) == self.pool.dispatcher.n_ready == 3


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(max_worker_memory=1000, timeout_ms=60_000)
    pool.work(0.1)
    yield pool
    pool.heal()
    pool.close()


@pytest.mark.parametrize("ailment", ["dies_on_load", "other_model", "no_process"])
def test_workers_that_cannot_be_started_are_not_started_in_a_busy_loop(pool: Pool, ailment: str) -> None:
    setattr(pool, ailment, True)
    for process in list(pool.processes):
        pool.call(process.die)
    before = pool.n_launched
    pool.work(60, every=0.1)
    assert pool.n_launched - before <= 3 * 9, "pauses grow to 15 s"
    assert pool.dispatcher.state.status == "unavailable"
    assert pool.dispatcher.state.trouble
    with pytest.raises(Unavailable):
        pool.submit([text(10)])
    pool.heal()
    pool.work(20, every=0.1)
    assert (pool.dispatcher.state.status, pool.dispatcher.state.trouble) == ("ok", "")


@pytest.mark.parametrize("ailment", ["", "other_model", "no_process"])
def test_workers_that_are_too_large_as_soon_as_they_start_are_not_replaced_in_a_busy_loop(
    pool: Pool, ailment: str
) -> None:
    if ailment:
        setattr(pool, ailment, True)
    before = pool.n_launched
    for _ in range(600):
        for process in pool.processes:
            process.memory = 2000
        pool.work(0.1, every=0.1)
    assert pool.n_launched - before <= 3 * 9
    assert pool.dispatcher.n_ready == 3


def test_a_process_that_dies_while_it_loads_is_told_in_health(pool: Pool) -> None:
    pool.dies_on_load = True
    pool.call(pool.processes[0].die)
    pool.work(5)
    assert pool.dispatcher.state.status == "degraded"
    assert "died before they computed anything" in pool.dispatcher.state.trouble
    future = pool.submit([text(10)])
    pool.work(0.1)
    assert future.done(), "the others serve on"


def test_a_worker_that_drifts_under_load_gives_no_answer_after_its_canary(pool: Pool) -> None:
    pool.drifting = True
    futures = []
    for n in range(40 * 20):
        futures.append((n, pool.submit([text(50, n), text(50, n + 1)])))
        pool.work(0.05, every=0.05)
    pool.work(1)
    for n, future in futures:
        np.testing.assert_array_equal(future.result(), [row_of(text(50, n)), row_of(text(50, n + 1))])
    assert pool.n_launched >= 6, "each was busy, and was replaced all the same"


def test_sighup_any_number_of_times_leaves_as_many_workers_as_before(pool: Pool) -> None:
    for _ in range(10):
        pool.restart_workers()
    pool.work(10)
    assert pool.n_launched == 3 + 3 + 3, "the first, and one for all that came meanwhile"
    assert len(pool.processes) == pool.dispatcher.n_ready == 3


def test_a_replaced_worker_that_dies_at_its_last_batch_has_had_its_successor(pool: Pool) -> None:
    futures = [pool.submit([text(90, n), text(90, n)]) for n in range(6)]
    old = list(pool.processes)
    pool.restart_workers()
    while len(old) > 1:
        for process in pool.processes:
            if process not in old:
                pool.call(process.work)  # it loads; its predecessor gets no more
        pool.call(old.pop(0).die)
    pool.work(5)
    assert [len(future.result()) for future in futures] == [2] * 6
    assert len(pool.processes) == pool.dispatcher.n_ready == 3


def test_a_replaced_worker_that_does_not_stop_is_killed(pool: Pool) -> None:
    stuck = pool.processes[0]
    stuck.hangs = True
    pool.restart_workers()
    pool.work(10)
    assert not stuck.alive
    assert len(pool.processes) == 3


def test_answers_that_come_together_do_not_make_the_pool_look_faster(pool: Pool) -> None:
    for _ in range(30):
        futures = [pool.submit([text(100, n)]) for n in range(6)]
        pool.wait(1)
        for process in pool.processes:  # two answers each, read at once
            pool.call(lambda process=process: (process.work(), process.work()))  # type: ignore[misc]
        assert all(future.done() for future in futures)
    assert pool.dispatcher._supervisor.rate == pytest.approx(200, rel=0.3)


@given(n_long=st.integers(1, 5), lengths=st.lists(st.integers(1, 25), min_size=5, max_size=10))
@settings(max_examples=5, deadline=None)
def test_short_requests_are_answered_before_long_ones_that_came_first(n_long: int, lengths: list[int]) -> None:
    pool = Pool()
    pool.work(0.1)
    long = [pool.submit([text(50)] * 400) for _ in range(n_long)]
    for n in lengths:
        short = pool.submit([text(n)])
        for _ in range(4):  # two batches that each worker holds, the one that is formed next, and its own
            for process in list(pool.processes):
                pool.call(process.work)
        assert short.done()
        assert not any(future.done() for future in long)
    pool.work(60, every=0.05)
    assert all(future.done() for future in long)
    pool.close()


def test_a_pool_that_had_little_to_do_does_not_look_slow(pool: Pool) -> None:
    for n in range(100):
        future = pool.submit([text(3, n)])
        pool.wait(0.9)
        pool.work(0.02)
        assert future.done()
    futures = [pool.submit([text(100, n)], patience=10) for n in range(9)]
    pool.work(9, every=0.9)
    assert all(future.done() for future in futures)


def test_a_machine_that_stood_still_for_a_while_refuses_nobody(pool: Pool) -> None:
    for n in range(100):
        futures = [pool.submit([text(100, n)]) for _ in range(3)]
        pool.work(0.2, every=0.1)
        assert all(future.done() for future in futures)
    futures = [pool.submit([text(100, n)]) for n in range(3)]
    pool.wait(2)
    pool.work(0.2, every=0.1)
    futures += [pool.submit([text(100, n)], patience=10) for n in range(50)]
    pool.work(10, every=0.1)
    assert all(future.done() for future in futures)


def test_a_request_that_cannot_be_done_by_its_deadline_is_refused_with_an_estimate(pool: Pool) -> None:
    futures = [pool.submit([text(100, n)]) for n in range(30)]
    for _ in range(10):
        pool.wait(1)
        for process in list(pool.processes):
            pool.call(process.work)
    assert all(future.done() for future in futures)
    waiting = [pool.submit([text(100, n)]) for n in range(30)]  # 10 s of work
    with pytest.raises(Overloaded, match=r"could take \d+\.\d s to be answered, but 2\.0 s are left") as refusal:
        pool.submit([text(100)], patience=2)
    assert 2 < refusal.value.retry_after_s < 20
    pool.work(20, every=1)
    assert all(future.done() for future in waiting)


def test_a_request_within_the_limit_of_an_idle_machine_is_taken_there(pool: Pool) -> None:
    futures = [pool.submit([text(100, n)]) for n in range(90)]
    pool.work(4, every=0.1)
    assert all(future.done() for future in futures)
    with pytest.raises(TooManyForDeadline) as refused:
        pool.submit([text(100, n) for n in range(10_000)])
    texts = [text(100, n % 500) for n in range(refused.value.limit // 100)]
    # Some of its time went by while its body came.
    future = pool.submit(texts, patience=0.8 * pool.config.timeout_ms / 1000)
    with pytest.raises(Overloaded):
        pool.submit(texts, patience=pool.config.timeout_ms / 1000)
    pool.work(60, every=0.1)
    assert len(future.result()) == len(texts)
    with pytest.raises(Overloaded):
        pool.submit(texts[:-50], patience=0.5 * pool.config.timeout_ms / 1000)


def test_rows_reach_their_request_though_the_next_batch_cannot_be_sent(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = pool.submit([text(10)])

    def fail(*_: object) -> None:
        raise OSError(32, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(pool.dispatcher, "_pump", fail)
        with pytest.raises(OSError, match="Broken pipe"):
            pool.work(0.05)
    np.testing.assert_array_equal(future.result(), [row_of(text(10))])


def test_the_background_waits_while_others_ask_and_is_done_once_they_do_not(pool: Pool) -> None:
    waits = [pool.submit([text(100, n)], caller=Caller("batches", background=True)) for n in range(20)]
    pool.submit([text(9)])
    pool.work(0.1)
    n_done = sum(future.done() for future in waits)  # those that ran before anybody asked
    for n in range(50):
        asked = pool.submit([text(9, n)])
        pool.work(0.1)
        assert asked.done()
    assert sum(future.done() for future in waits) <= n_done + 1
    pool.work(10)
    assert all(future.done() for future in waits)
