"""A cache around a back end: what is computed, for whom, and what becomes of it."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embellama.backend import Caller, Times
from embellama.batch import RowKind, Rows
from embellama.cache.backend import LOOKED_AT
from embellama.cache.key import RowKeys
from embellama.cache.layers import READ_S
from embellama.errors import DeadlineExceeded, EmbeddingFailed, Overloaded, Unavailable
from tests.cache.simulation import DictLayer, Inside, cached, outcome, rows_of, text
from tests.conftest import wait_until

A, B, C = text(1), text(2), text(3)


def assert_rows(future: Any, tokens: Sequence[Any], kind: RowKind = RowKind.TEXT) -> None:
    np.testing.assert_array_equal(future.result(timeout=0), rows_of(tokens, kind))


@pytest.fixture
def inside() -> Inside:
    return Inside()


# ---- known rows


@pytest.mark.parametrize("kind", RowKind)
def test_a_known_row_is_not_computed_again(inside: Inside, kind: RowKind) -> None:
    backend = cached(inside)
    first = backend.submit([A, B], kind=kind)
    inside.compute_all()
    second = backend.submit([B, C, A, B], kind=kind)
    assert [list(ids) for ids in inside.requests[1].tokens] == [list(C)]
    inside.compute_all()
    third = backend.submit([C, A], kind=kind)
    assert len(inside.requests) == 2
    assert_rows(first, [A, B], kind)
    assert_rows(second, [B, C, A, B], kind)
    assert_rows(third, [C, A], kind)


def test_kinds_of_rows_are_not_taken_for_each_other(inside: Inside) -> None:
    backend = cached(inside)
    one_token = text(1, 1)  # of which each kind has one row
    for kind in RowKind:
        future = backend.submit([one_token], kind=kind)
        inside.compute_all()
        assert_rows(future, [one_token], kind)


def test_an_empty_request_has_no_rows(inside: Inside) -> None:
    assert cached(inside).submit([]).result(timeout=0).shape == (0, 4)


def test_rows_are_the_callers_own(inside: Inside) -> None:
    backend = cached(inside)
    futures = [backend.submit([A]), backend.submit([A]), backend.submit([A, A])]
    inside.compute_all()
    futures += [backend.submit([A])]
    for future in futures:
        future.result(timeout=0)[:] = 7
    assert_rows(backend.submit([A]), [A])


def test_what_is_not_finite_is_not_kept(inside: Inside) -> None:
    backend = cached(inside)
    future = backend.submit([A])
    inside.requests[0].future.set_result(np.full((1, 4), np.nan, np.float32))
    assert np.isnan(future.result(timeout=0)).all()
    backend.submit([A])
    assert len(inside.requests) == 2


def test_rows_are_computed_again_when_their_time_is_over(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = DictLayer()
    backend = cached(inside, None, layer, ttl_s=60)
    backend.submit([A])
    inside.compute_all()
    wait_until(lambda: bool(layer.entries), "the row is written")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59)
    assert backend.submit([A]).done()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert not backend.submit([A]).done()


def test_callers_who_do_not_share_know_only_their_own_rows(inside: Inside) -> None:
    backend = cached(inside)
    ann, bob = Caller("ann", shares_cache=False), Caller("bob", shares_cache=False)
    for n, caller in enumerate((ann, bob, Caller("carl"), ann, bob, Caller("dora")), 1):
        backend.submit([A], caller=caller)  # nor do they wait for each other's
        assert len(inside.requests) == min(n, 3)
    inside.compute_all()
    assert all(backend.submit([A], caller=caller).done() for caller in (ann, bob, Caller("carl")))


def test_tokens_that_were_not_computed_are_counted(inside: Inside) -> None:
    backend = cached(inside)
    long = text(9, 5)

    def cached_tokens(*tokens: Any) -> int:
        times = Times()
        backend.submit(tokens, times=times)
        inside.compute_all()
        return times.cached_tokens

    assert [cached_tokens(A), cached_tokens(A, long), cached_tokens(A, long, long)] == [0, 2, 12]
    assert cached_tokens(B, B, C) == 2  # the second copy


def test_progress_counts_what_is_known(inside: Inside) -> None:
    backend = cached(inside)
    backend.submit([A])
    inside.compute_all()
    seen: list[tuple[int, int]] = []
    backend.submit([A, B, B, C], progress=lambda *of: seen.append(of))
    inside.compute_all()
    backend.submit([A], progress=lambda *of: seen.append(of))
    assert seen[0] == (1, 4)
    assert seen[-2:] == [(4, 4), (1, 1)]


# ---- rows that are being computed


def test_a_row_that_is_being_computed_is_waited_for(inside: Inside) -> None:
    backend = cached(inside)
    futures = [backend.submit([A, B]), backend.submit([B, C]), backend.submit([C, A, A])]
    assert [[ids[0] for ids in request.tokens] for request in inside.requests] == [[1, 2], [3]]
    inside.compute_all()
    for future, tokens in zip(futures, ([A, B], [B, C], [C, A, A]), strict=True):
        assert_rows(future, tokens)


def test_nobody_waits_for_a_request_much_longer_than_his_own(inside: Inside) -> None:
    backend = cached(inside)
    many = [text(id) for id in range(10, 30)]
    backend.submit(many)
    lone = backend.submit([many[3]])
    backend.submit(many)  # as long itself: it waits
    assert [len(request.tokens) for request in inside.requests] == [20, 1]
    inside.requests[1].compute()
    assert_rows(lone, [many[3]])


def test_nobody_waits_for_what_may_end_after_his_own_deadline(inside: Inside) -> None:
    backend = cached(inside)
    backend.submit([A], deadline=9.0)
    backend.submit([A], deadline=8.0)
    assert [request.deadline for request in inside.requests] == [9.0, 8.0]


def test_a_row_is_computed_for_the_others_when_the_first_one_leaves(inside: Inside) -> None:
    backend = cached(inside)
    first, second = backend.submit([A, B]), backend.submit([B])
    first.cancel()
    inside.compute_all()
    assert_rows(second, [B])
    assert backend.submit([A]).done()  # it was computed all the same


def test_a_row_that_nobody_waits_for_is_not_computed(inside: Inside) -> None:
    backend = cached(inside)
    futures = [backend.submit([A, B]), backend.submit([B])]
    for future in futures:
        future.cancel()
    assert inside.requests[0].future.cancelled()
    backend.submit([A])
    assert len(inside.open) == 1


def test_a_row_is_not_computed_if_who_wants_it_leaves_as_it_is_asked_for(inside: Inside) -> None:
    backend = cached(inside)
    backend.submit([A, B], deadline=1.0)
    second = backend.submit([B])
    inside.on_submit = second.cancel
    inside.requests[0].expire()
    assert inside.requests[1].future.cancelled()


def test_a_failure_reaches_each_with_his_own_index_and_costs_the_others_nothing(inside: Inside) -> None:
    backend = cached(inside)
    first, second, third = backend.submit([A, B]), backend.submit([C, C, B]), backend.submit([A])
    inside.requests[0].fail(1)
    for future, index in ((first, 1), (second, 2)):
        error = outcome(future)
        assert isinstance(error, EmbeddingFailed)
        assert error.index == index
    inside.compute_all()
    assert_rows(third, [A])


def test_a_text_refused_at_once_is_named_by_its_own_index(inside: Inside) -> None:
    backend = cached(inside)
    backend.submit([A])
    inside.compute_all()
    with pytest.raises(EmbeddingFailed) as failed:
        backend.submit([A, B, text(-1)])
    assert failed.value.index == 2


def test_a_deadline_is_only_its_own_requests(inside: Inside) -> None:
    backend = cached(inside)
    first, second = backend.submit([A, B], deadline=1.0), backend.submit([B], deadline=2.0)
    inside.requests[0].expire()
    assert isinstance(outcome(first), DeadlineExceeded)
    assert [request.deadline for request in inside.open] == [2.0]
    inside.compute_all()
    assert_rows(second, [B])


# ---- a back end that is full, or closed


def test_what_is_known_is_answered_though_there_is_no_room(inside: Inside) -> None:
    backend = cached(inside)
    futures = [backend.submit([A]), backend.submit([A])]
    inside.full = True
    assert_rows_later = backend.submit([A])  # waits with them
    with pytest.raises(Overloaded):
        backend.submit([A, B])
    inside.compute_all()
    for future in (*futures, assert_rows_later, backend.submit([A])):
        assert_rows(future, [A])


def test_a_full_back_end_lets_requests_be_looked_at_while_some_are_known(inside: Inside) -> None:
    backend = cached(inside)
    inside.full = True

    def n_looked_at() -> int:
        n = 0
        for _ in range(2 * LOOKED_AT):
            try:
                backend.check_room()
                n += 1
            except Overloaded:
                pass
        return n

    assert n_looked_at() == 2
    inside.full = False
    backend.submit([A])
    inside.compute_all()
    for _ in range(5):
        backend.submit([A])
    inside.full = True
    assert n_looked_at() == 2 * LOOKED_AT


def test_a_closed_back_end_gives_nothing(inside: Inside) -> None:
    backend = cached(inside)
    backend.submit([A])
    inside.compute_all()
    backend.close()
    for call in (backend.check_room, lambda: backend.submit([A])):
        with pytest.raises(Unavailable):
            call()


# ---- slow layers


def test_layers_are_asked_in_order_and_filled_backwards(inside: Inside) -> None:
    near, far = DictLayer(), DictLayer()
    backend = cached(inside, None, near, far)
    backend.submit([A, B])
    inside.compute_all()
    wait_until(lambda: len(far.entries) == 2, "the rows are written")
    kept = dict(far.entries)
    near.entries.clear()
    again = cached(inside, None, near, far)  # another process, with an empty memory
    future = again.submit([A, C, B])
    assert [[ids[0] for ids in request.tokens] for request in inside.open] == [[3]]
    inside.compute_all()
    assert_rows(future, [A, C, B])
    wait_until(lambda: near.entries.keys() >= kept.keys(), "what the far layer had is in the near one")
    assert again.submit([A, B]).done()
    memory, first, second = again.state.cache
    assert (memory.n_hits, memory.n_misses, first.n_hits, first.n_misses, second.n_hits) == (2, 3, 0, 3, 2)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, "cut", "flipped", "longer", "another text's length"])
def test_a_damaged_entry_is_a_miss(inside: Inside, damage: bytes | str) -> None:
    layer = DictLayer()
    backend = cached(inside, None, layer)
    backend.submit([A])
    inside.compute_all()
    wait_until(lambda: bool(layer.entries), "the row is written")
    ((key, entry),) = layer.entries.items()
    flipped = bytes([*entry[:-1], entry[-1] ^ 1])
    known = {"cut": entry[:-1], "flipped": flipped, "longer": entry + b"\0", "another text's length": entry[:-4]}
    layer.entries[key] = damage if isinstance(damage, bytes) else known[damage]
    future = cached(inside, None, layer).submit([A])
    assert len(inside.open) == 1
    inside.compute_all()
    assert_rows(future, [A])
    wait_until(lambda: layer.entries[key][20:] == entry[20:], "it is mended")


def test_a_layer_that_is_stuck_is_not_waited_for(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embellama.cache.backend.READ_S", READ_S)

    class Stuck(DictLayer):
        def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
            wait_until(lambda: stuck is False, "the test is over")
            return {}

    stuck = True
    backend = cached(inside, None, DictLayer(), Stuck())
    futures = [backend.submit([A]), backend.submit([B])]
    inside.compute_all()
    for future, tokens in zip(futures, ([A], [B]), strict=True):
        assert_rows(future, tokens)
    stuck = False
    backend.close()


def test_what_waits_to_be_written_is_written_at_the_end(inside: Inside) -> None:
    layer = DictLayer()
    backend = cached(inside, None, layer)
    backend.submit([text(id) for id in range(100)])
    inside.compute_all()
    backend.close()
    assert len(layer.entries) == 100


def test_rows_are_those_of_one_model(inside: Inside) -> None:
    layer = DictLayer()
    backend = cached(inside, None, layer)
    backend.submit([A])
    inside.compute_all()
    backend.close()
    other: Rows | None = outcome(cached(Inside(), None, layer, keys=RowKeys(b"another")).submit([A]))  # type: ignore[assignment]
    assert other is None


def test_what_is_computed_in_the_background_is_neither_looked_up_nor_kept(inside: Inside) -> None:
    backend, background = cached(inside), Caller(background=True)
    backend.submit([A])
    inside.compute_all()
    for n_requests in (2, 3):
        future = backend.submit([A, B], caller=background)
        assert len(inside.requests) == n_requests
        inside.compute_all()
        assert_rows(future, [A, B])
