"""The scheduler against simulated workers that work, fail and die, in any order."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embellama import Overloaded
from embellama.caller_queue import Text
from embellama.scheduler import Assignment, Failure, Limits, Scheduler


def scheduler(n_workers: int = 2, **limits: int | None) -> Scheduler:
    values: dict[str, int | None] = {"max_batch_tokens": 100, "max_batch_size": 8, "n_threads_busy": 1}
    made = Scheduler(Limits(**{**values, "n_threads_alone": 4, **limits}))  # type: ignore[arg-type]
    for worker in range(n_workers):
        made.worker_ready(worker)
    return made


def drain(made: Scheduler, todo: list[Assignment]) -> list[int]:
    """Complete every batch, and those that follow; return finished requests in order."""
    finished = []
    while todo:
        done = todo.pop(0)
        finished += made.complete(done.batch, done.worker).finished
        todo += made.assign()
    return finished


def test_a_lone_text_gets_every_thread_and_company_one_each() -> None:
    made = scheduler()
    made.submit([10])
    (alone,) = made.assign()
    assert alone.n_threads == 4
    made.submit([10])
    (second,) = made.assign()
    assert (second.n_threads, second.worker) == (2, 1)
    made.worker_lost(alone.worker)
    made.submit([10])
    made.complete(second.batch, second.worker)
    (again,) = made.assign()
    assert (again.n_threads, again.worker) == (4, 1), "whoever is left has all cores"


def test_texts_of_different_requests_share_a_batch() -> None:
    made = scheduler(n_workers=1)
    ids = [made.submit([10]) for _ in range(3)]
    (batch,) = made.assign()
    assert {text.request for text in batch.texts} == set(ids)


def test_one_request_is_spread_evenly_over_free_workers() -> None:
    made = scheduler()
    made.submit([15, 15, 15])
    assert sorted(len(batch.texts) for batch in made.assign()) == [1, 2]


def test_a_text_over_the_budget_goes_alone() -> None:
    made = scheduler(n_workers=1)
    made.submit([500, 10, 10])
    first, *_ = made.assign()
    assert first.texts == [Text(1, 0)]


def test_a_short_request_overtakes_a_long_one() -> None:
    made = scheduler(n_workers=1)
    long = made.submit([50] * 200)
    todo = list(made.assign())
    short = made.submit([50])
    assert drain(made, todo) == [short, long]
    assert made.n_open == 0


def test_requests_of_one_batch_are_served_in_order() -> None:
    made = scheduler(n_workers=1)
    ids = [made.submit([60, 40]) for _ in range(10)]
    assert drain(made, list(made.assign())) == ids


def test_a_second_batch_waits_until_it_is_full_or_the_worker_free() -> None:
    made = scheduler(n_workers=1, n_slots=2)
    made.submit([10])
    (first,) = made.assign()
    made.submit([90])
    assert list(made.assign()) == []
    made.submit([10])
    assert [batch.worker for batch in made.assign()] == [first.worker]
    made.submit([100])
    assert list(made.assign()) == [], "it holds two batches"


def test_a_full_waiting_room_refuses() -> None:
    made = scheduler(n_workers=1, max_waiting=2)
    made.submit([100])
    list(made.assign())
    made.submit([10])
    made.submit([10])
    with pytest.raises(Overloaded, match="2 requests are waiting already"):
        made.submit([10])
    assert made.n_open == 3


def test_a_room_full_of_tokens_refuses_and_an_empty_one_takes_any() -> None:
    made = scheduler(n_workers=0, max_waiting_tokens=100)
    made.submit([500])
    with pytest.raises(Overloaded, match="500 tokens are waiting already; 100 are the most allowed"):
        made.submit([1])
    assert made.waiting_tokens == 500


def test_a_short_request_is_in_one_of_the_next_two_batches_however_many_long_ones_wait() -> None:
    made = scheduler(n_workers=1)
    for _ in range(20):
        made.submit([20] * 100)
    todo = list(made.assign())
    for _ in range(100):
        short = made.submit([10])
        batches = []
        for _ in range(2):
            done = todo.pop(0)
            made.complete(done.batch, done.worker)
            todo += made.assign()
            batches.append({text.request for text in todo[0].texts})
        assert any(short in batch for batch in batches)


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_short_requests_without_end_do_not_keep_a_long_one_out(sizes: list[int]) -> None:
    made = scheduler(n_workers=1)
    long = made.submit([50] * 20)
    todo = list(made.assign())
    finished: list[int] = []
    for turn in range(200):
        made.submit([sizes[turn % len(sizes)]])
        done = todo.pop(0)
        finished += made.complete(done.batch, done.worker).finished
        todo += made.assign()
    assert long in finished


def test_long_requests_are_served_one_after_another_those_with_less_to_do_first() -> None:
    made = scheduler(n_workers=1)
    longest = made.submit([50] * 100)
    todo = list(made.assign())
    alike = [made.submit([50] * 10) for _ in range(5)]
    ended = {}
    for n_batches in itertools.count(1):
        if not todo:
            break
        done = todo.pop(0)
        for id in made.complete(done.batch, done.worker).finished:
            ended[id] = n_batches
        todo += made.assign()
    assert [ended[id] for id in alike] == [6, 11, 16, 21, 26], "each takes five batches, and none the time of others"
    assert ended[longest] == 75


def test_long_requests_without_end_do_not_keep_the_longest_out() -> None:
    made = scheduler(n_workers=1)
    longest = made.submit([50] * 40)
    todo = list(made.assign())
    for turn in range(200):
        if turn % 5 == 0:  # together with the longest, as much as can be done
            made.submit([50] * 10)
        done = todo.pop(0)
        if longest in made.complete(done.batch, done.worker).finished:
            return
        todo += made.assign()
    pytest.fail("it was kept out")


def test_small_batches_follow_a_small_request_among_long_ones() -> None:
    made = scheduler(n_workers=1, n_slots=2)
    made.submit([5] * 500)
    todo = list(made.assign())
    assert [len(batch.texts) for batch in todo] == [8, 8]
    made.submit([5])
    lengths = []
    while todo:
        done = todo.pop(0)
        made.complete(done.batch, done.worker)
        todo += made.assign()
        lengths.append([len(batch.texts) for batch in todo])
    assert [2] in lengths, "an eighth of the budget, and no second batch"
    assert lengths[-20] == [8, 8], "and some time later as before"


def test_a_retired_worker_finishes_what_it_holds_and_gets_no_more() -> None:
    made = scheduler(n_slots=2)
    id = made.submit([50] * 20)
    todo = list(made.assign())
    made.retire(0)
    assert (made.workers, made.n_held(0)) == ([1], 2)
    later = []
    for batch in todo:
        made.complete(batch.batch, batch.worker)
        later += list(made.assign())
    assert {batch.worker for batch in later} == {1}
    assert made.n_held(0) == 0
    assert drain(made, later) == [id]


def test_tokens_before_a_request_are_its_own_in_an_empty_room() -> None:
    made = scheduler(n_workers=0)
    assert made.tokens_before(30) == 30
    assert made.tokens_before(10_000) == 10_000


def test_tokens_before_a_request_count_turns_not_queues() -> None:
    made = scheduler(n_workers=0)
    made.submit([50] * 100)
    assert made.tokens_before(30) == 2 * 30, "half of each batch is for short ones"
    assert made.tokens_before(200) == 2 * 200, "as the long one has its turns"
    made.submit([10])
    assert made.tokens_before(30) == 2 * (10 + 30)
    assert made.tokens_before(10_000) == 5010 + 10_000


def test_tokens_before_a_long_request_include_short_ones_as_they_came_lately() -> None:
    made = scheduler(n_workers=1)
    made.submit([50] * 1000)
    for _ in range(300):
        made.submit([50])
        (batch,) = made.assign()
        made.complete(batch.batch, batch.worker)
    assert made.tokens_before(200) > 1.9 * 2 * 200, "half of each batch went to short ones"


def test_expired_requests_are_reported_once_and_never_run() -> None:
    made = scheduler(n_workers=0)
    late, soon = made.submit([10], deadline=20), made.submit([10], deadline=10)
    assert made.expired(9.9) == []
    assert made.expired(10) == [soon]
    assert made.expired(10) == []
    made.worker_ready(0)
    (batch,) = made.assign()
    assert batch.texts == [Text(late, 0)]


def test_what_a_dead_worker_held_runs_on_another() -> None:
    made = scheduler(n_slots=2)
    id = made.submit([50] * 8)
    todo = list(made.assign())
    assert len(todo) == 4
    assert made.worker_lost(0) == []
    assert drain(made, [batch for batch in todo if batch.worker == 1]) == [id]


def test_a_late_answer_of_a_dead_worker_means_nothing() -> None:
    made = scheduler()
    id = made.submit([10])
    (batch,) = made.assign()
    made.worker_lost(batch.worker)
    assert made.complete(batch.batch, batch.worker).rows == []
    assert drain(made, list(made.assign())) == [id]


@given(poison=st.integers(0, 7), fails=st.booleans())
def test_a_text_that_kills_fails_its_request_alone(poison: int, fails: bool) -> None:
    made = scheduler(n_workers=1)
    ids = [made.submit([10]) for _ in range(8)]
    finished: list[int] = []
    failures: list[Failure] = []
    n_deaths = 0
    while made.n_open:
        (batch,) = made.assign()
        if Text(ids[poison], 0) not in batch.texts:
            finished += made.complete(batch.batch, batch.worker).finished
        elif fails:
            failures += made.fail(batch.batch, batch.worker)
        else:
            failures += made.worker_lost(batch.worker)
            made.worker_ready(batch.worker)
            n_deaths += 1
    assert failures == [Failure(ids[poison], 0)]
    assert sorted(finished) == sorted(set(ids) - {ids[poison]})
    assert n_deaths <= 3


class Simulation(RuleBasedStateMachine):
    """Requests come and go while workers finish, fail, die and return; texts of more than 90 tokens kill."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler(n_workers=3, n_slots=2, max_waiting=5)
        self.workers = {0, 1, 2}
        self.held: list[Assignment] = []
        self.sizes: dict[int, list[int]] = {}  # open requests
        self.missing: dict[int, set[int]] = {}
        self.now = 0.0
        self.deadlines: dict[int, float] = {}
        self.retired: set[int] = set()

    def assign(self) -> None:
        for batch in self.scheduler.assign():
            self.held.append(batch)
            assert batch.worker in self.workers - self.retired
            assert len(batch.texts) <= 8
            sizes = [self.sizes[text.request][text.position] for text in batch.texts]
            assert len(sizes) == 1 or sum(sizes) <= 100
            assert sum(held.worker == batch.worker for held in self.held) <= 2

    def close(self, id: int) -> None:
        del self.sizes[id], self.missing[id], self.deadlines[id]

    def failed(self, failures: list[Failure]) -> None:
        for id, position in failures:
            assert self.sizes[id][position] > 90, "only a text that kills may fail"
            self.close(id)

    def first_of(self, worker: int) -> Assignment | None:
        return next((batch for batch in self.held if batch.worker == worker), None)

    def kills(self, batch: Assignment) -> bool:
        sizes = (self.sizes.get(text.request, [0] * 99)[text.position] for text in batch.texts)
        return any(size > 90 for size in sizes)

    @rule(sizes=st.lists(st.integers(1, 95), min_size=1, max_size=30), patience=st.integers(1, 50))
    def submit(self, sizes: list[int], patience: int) -> None:
        full = self.scheduler.n_waiting >= 5
        try:
            id = self.scheduler.submit(sizes, self.now + patience)
        except Overloaded:
            assert full
            return
        assert not full
        self.sizes[id], self.missing[id] = sizes, set(range(len(sizes)))
        self.deadlines[id] = self.now + patience
        self.assign()

    @rule(worker=st.integers(0, 2))
    def work(self, worker: int) -> None:
        batch = self.first_of(worker)
        if batch is None:
            return
        if self.kills(batch):
            self.die(worker)
            return
        self.held.remove(batch)
        answer = self.scheduler.complete(batch.batch, worker)
        for row, text in answer.rows:
            assert batch.texts[row] == text
            self.missing[text.request].remove(text.position)
        for id in answer.finished:
            assert not self.missing[id], "answered before every row was there"
            self.close(id)
        self.assign()

    @rule(worker=st.integers(0, 2))
    def fail(self, worker: int) -> None:
        batch = self.first_of(worker)
        if batch and self.kills(batch):
            self.held.remove(batch)
            self.failed(self.scheduler.fail(batch.batch, worker))
            self.assign()

    def die(self, worker: int) -> None:
        self.workers.discard(worker)
        self.retired.discard(worker)
        self.held = [batch for batch in self.held if batch.worker != worker]
        self.failed(self.scheduler.worker_lost(worker))
        self.assign()

    @rule(worker=st.integers(0, 2))
    def retire(self, worker: int) -> None:
        if worker in self.workers:
            self.retired.add(worker)
            self.scheduler.retire(worker)

    @precondition(lambda self: len(self.workers) < 3)
    @rule(worker=st.integers(0, 2))
    def restart(self, worker: int) -> None:
        if worker not in self.workers:
            self.workers.add(worker)
            self.scheduler.worker_ready(worker)
            self.assign()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.sizes:
            id = data.draw(st.sampled_from(sorted(self.sizes)))
            self.scheduler.cancel(id)
            self.close(id)
            self.assign()

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        expired = self.scheduler.expired(self.now)
        assert sorted(expired) == sorted(id for id, deadline in self.deadlines.items() if deadline <= self.now)
        for id in expired:
            self.close(id)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.scheduler.n_open == len(self.sizes)
        assert self.scheduler.n_waiting <= 5
        if self.sizes and self.workers - self.retired:
            assert self.held, "there is work and a worker, but no batch is running"

    def teardown(self) -> None:
        """With workers that work again, everything still open is answered."""
        for worker in self.retired & self.workers:
            self.die(worker)
        for worker in {0, 1, 2} - self.workers:
            self.restart(worker)
        for _ in range(10_000):
            if not self.held:
                break
            worker = self.held[0].worker
            self.work(worker)
            self.restart(worker) if worker not in self.workers else None
        assert not self.sizes


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("max_batch_tokens", range(1, 9))
def test_batches_of_a_few_tokens_are_small_ones_too(max_batch_tokens: int) -> None:
    limits = Limits(max_batch_tokens=max_batch_tokens, max_batch_size=4, n_threads_busy=1, n_threads_alone=1)
    scheduler = Scheduler(limits)
    scheduler.worker_ready(0)
    scheduler.submit([10, 10, 10])
    scheduler.submit([1])
    while scheduler.n_open:
        for assignment in scheduler.assign():
            scheduler.complete(assignment.batch, 0)


# ---- in the background


def test_a_request_in_the_background_is_one_batch_beside_no_others() -> None:
    made = scheduler(n_workers=2)
    first, second = (made.submit([10, 20], background=True) for _ in range(2))
    assignments = list(made.assign())
    assert [[*each.texts] for each in assignments] == [
        [Text(first, 0), Text(first, 1)],
        [Text(second, 0), Text(second, 1)],
    ]
    assert {each.n_threads for each in assignments} == {1}, "as many as ever, though the first was alone"


def test_the_background_waits_for_all_others_and_for_leave() -> None:
    made = scheduler(n_workers=1, n_slots=2)
    waits = made.submit([100], background=True)
    assert list(made.assign(background=False)) == []
    asked = made.submit([100])
    (first,) = made.assign()
    assert [text.request for text in first.texts] == [asked]
    made.complete(first.batch, first.worker)
    (second,) = made.assign()
    made.submit([100], background=True)
    assert [text.request for text in second.texts] == [waits]
    assert list(made.assign()) == [], "a worker holds one such batch"
    assert (made.n_waiting, made.n_background, made.n_open) == (0, 1, 2)


def test_callers_in_the_background_take_turns_and_leave_the_room_as_it_is() -> None:
    made = scheduler(n_workers=1, max_waiting=1)
    many = [made.submit([10], caller="a", background=True) for _ in range(4)]
    few = [made.submit([10], caller="b", background=True) for _ in range(2)]
    made.check_room()
    assert drain(made, list(made.assign())) == [many[0], few[0], many[1], few[1], many[2], many[3]]


def test_a_batch_in_the_background_runs_again_as_it_was() -> None:
    made = scheduler()
    made.submit([10, 20], background=True)
    (batch,) = made.assign()
    made.worker_lost(batch.worker)
    (again,) = made.assign()
    assert (again.texts, again.n_threads) == (batch.texts, 1)
    gone = made.submit([10], background=True)
    made.cancel(gone)
    assert made.n_background == 0
