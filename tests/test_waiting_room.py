"""The waiting room, shared by several callers."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama import Overloaded
from embellama.caller_queue import Text
from embellama.waiting_room import WaitingRoom

BATCH = 100

# Requests of each caller, as tokens of their texts; short ones and long ones.
REQUESTS = st.lists(st.lists(st.integers(1, BATCH), min_size=1, max_size=12), min_size=1, max_size=12)


def waiting_room(max_waiting: int | None = None, max_waiting_tokens: int | None = None) -> WaitingRoom:
    return WaitingRoom(
        max_batch_tokens=BATCH, max_batch_size=1000, max_waiting=max_waiting, max_waiting_tokens=max_waiting_tokens
    )


class Callers:
    """Callers who each ask the same again and again, so that two batches or more of each wait all the time."""

    def __init__(self, requests: dict[str, list[list[int]]]):
        self.room = waiting_room()
        self.requests = {caller: itertools.cycle(sizes) for caller, sizes in requests.items()}
        self.waiting: Counter[str] = Counter()
        self.asked: list[tuple[str, list[int]]] = []
        self.given: Counter[str] = Counter()

    def ask(self) -> None:
        for caller, requests in self.requests.items():
            while self.waiting[caller] < 2 * BATCH:
                n_tokens = next(requests)
                self.room.add(len(self.asked), n_tokens, caller)
                self.asked.append((caller, n_tokens))
                self.waiting[caller] += sum(n_tokens)

    def pick(self, *, small: bool) -> None:
        for id, position in self.room.pick(1, small=small).texts:
            caller, n_tokens = self.asked[id]
            self.waiting[caller] -= n_tokens[position]
            self.given[caller] += n_tokens[position]


@settings(deadline=None, max_examples=50)
@given(requests=st.dictionaries(st.sampled_from("abcd"), REQUESTS, min_size=2), small=st.booleans())
def test_callers_who_wait_are_served_alike_however_much_they_ask(
    requests: dict[str, list[list[int]]], small: bool
) -> None:
    callers = Callers(requests)
    for _ in range(60):
        callers.ask()
        callers.pick(small=small)
        served = [callers.given[caller] for caller in requests]
        assert max(served) - min(served) <= 2 * BATCH


@settings(deadline=None)
@given(requests=st.dictionaries(st.sampled_from("abcd"), REQUESTS, min_size=1), data=st.data())
def test_every_text_is_picked_once_and_batches_are_within_bounds(
    requests: dict[str, list[list[int]]], data: st.DataObject
) -> None:
    room = waiting_room()
    asked = [(caller, n_tokens) for caller, sizes in requests.items() for n_tokens in sizes]
    for id, (caller, n_tokens) in enumerate(asked):
        room.add(id, n_tokens, caller)
    removed = data.draw(st.integers(0, len(asked)))
    room.remove(removed)
    left = {(id, i): n for id, (_, sizes) in enumerate(asked) if id != removed for i, n in enumerate(sizes)}
    while left:
        assert (room.n_requests, room.n_tokens) == (len({id for id, _ in left}), sum(left.values()))
        batch = room.pick(data.draw(st.integers(1, 3)), small=data.draw(st.booleans()))
        assert batch.n_tokens == sum(left.pop(text) for text in batch.texts) <= BATCH
    assert (room.n_requests, room.n_tokens) == (0, 0)


def test_batches_are_full_though_one_caller_has_less_than_its_part() -> None:
    room = waiting_room()
    room.add(1, [10], "one")
    for id in range(2, 100):
        room.add(id, [10], "many")
    batch = room.pick(1, small=False)
    assert batch.n_tokens >= 0.9 * BATCH
    assert Text(1, 0) in batch.texts


def test_a_caller_who_was_away_has_saved_nothing_and_owes_nothing() -> None:
    room = waiting_room()
    for id in range(500):
        room.add(id, [10], "always")
    for _ in range(20):
        room.pick(1, small=False)
    for id in range(500, 600):
        room.add(id, [10], "back")
    n_back = [sum(text.request >= 500 for text in room.pick(1, small=False).texts) for _ in range(4)]
    assert n_back in ([10, 0, 10, 0], [0, 10, 0, 10]), "batches of one and the other in turn"


def wait_of(n_clients: int, n_rounds: int = 300) -> int:
    """The 99th percentile of batches in which a lone client's request is answered, beside another caller's clients."""
    room = waiting_room()
    for id in range(1, n_clients + 1):
        room.add(id, [5], "many")
    waits = []
    for lone in range(1_000, 1_000 + n_rounds):
        room.add(lone, [5], "one")
        for n_batches in range(1, 100):
            picked = [text.request for text in room.pick(1, small=room.wants_small_batches).texts]
            for id in picked:
                if id != lone:
                    room.add(id, [5], "many")
            if lone in picked:
                waits.append(n_batches)
                break
    return int(np.percentile(waits, 99))


def test_a_lone_client_waits_as_if_alone_beside_a_caller_with_64() -> None:
    assert wait_of(64) <= 2 * wait_of(0)


def test_batches_are_small_for_a_small_request_among_another_callers() -> None:
    room = waiting_room()
    for id in range(50):
        room.add(id, [10], "many")
    assert not room.wants_small_batches
    room.add(50, [10], "one")
    assert room.wants_small_batches
    assert Text(50, 0) in [text for _ in range(2) for text in room.pick(1, small=True).texts]


def test_a_full_room_takes_a_caller_with_less_than_its_part() -> None:
    room = waiting_room(max_waiting=4)
    for id in range(4):
        room.add(id, [1], "many")
    with pytest.raises(Overloaded, match="4 requests are waiting already"):
        room.add(4, [1], "many")
    room.add(4, [1], "one")
    room.add(5, [1], "one")
    for caller in ("one", "many"):
        with pytest.raises(Overloaded):
            room.check_room(caller=caller)
    room.add(6, [1], "third")
    room.add(7, [1], "third")
    with pytest.raises(Overloaded, match="8 requests are waiting already; 4 are the most allowed"):
        room.add(8, [1], "third")


def test_a_room_full_of_tokens_takes_a_caller_with_less_than_its_part() -> None:
    room = waiting_room(max_waiting_tokens=100)
    room.add(1, [100], "many")
    room.add(2, [30], "one")
    room.add(3, [20], "one")
    for caller in ("one", "many"):
        with pytest.raises(Overloaded, match="150 tokens are waiting already; 100 are the most allowed"):
            room.add(4, [1], caller)
    room.add(4, [51], "third")
    with pytest.raises(Overloaded):
        room.add(5, [1], "third")


def test_a_lone_callers_wait_is_estimated_by_its_own_tokens_and_the_number_of_callers() -> None:
    room = waiting_room()
    for id in range(100):
        room.add(id, [50], "many")
    assert room.tokens_before(50, "one") == 2 * 50
    assert room.tokens_before(50, "many") == 100 * 50 + 50
    room.add(100, [50], "one")
    assert room.tokens_before(50, "one") == 2 * (50 + 50)
    assert room.tokens_before(50, "many") == 100 * 50 + 50 + 50, "no more of another caller's than there are"
