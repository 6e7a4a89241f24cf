"""Whatever is known, fails, leaves or is late: each request gets its own rows or its own error, and nothing stays open.

The same steps on futures of threads and on those of an event loop.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama.backend import ANYONE, Caller
from embellama.batch import RowKind
from embellama.cache.futures import Futures, LoopFutures, ThreadFutures
from embellama.errors import DeadlineExceeded, EmbeddingFailed, Overloaded
from tests.cache.simulation import FULL_BATCH, DictLayer, Inside, cached, rows_of, text

TEXTS = [text(1), text(2), text(3, 4), text(4, 1), text(5, 2 * FULL_BATCH), text(-1)]
# Mostly those that meet: who shares, asks for the same kind of row and may wait for the others.
PICKED = st.lists(st.sampled_from([0, 0, 1, 1, 2, 2, 3, 4, 5]), max_size=5)
KINDS = st.sampled_from([*[RowKind.TEXT] * 6, RowKind.POOLED, RowKind.TOKEN])
DEADLINES = st.sampled_from([1.0, 2.0, float("inf"), float("inf")])
CALLERS = st.sampled_from([*[ANYONE] * 6, Caller("eve", shares_cache=False)])

submits = st.tuples(st.just("submit"), PICKED, KINDS, DEADLINES, CALLERS)
# The number picks one of those that are open at that moment.
events = st.tuples(st.sampled_from(["compute", "fail", "expire", "cancel"]), st.integers(0, 50))
changes = st.tuples(st.sampled_from(["full", "room", "damage", "forget"]))
steps = st.lists(st.one_of(submits, submits, events, events, changes), max_size=40)


class Run:
    """Goes through the steps, and knows what each request may end with."""

    def __init__(self, futures: Futures[Any], n_layers: int, max_bytes: int):
        self.inside = Inside(futures)
        self.layers = [DictLayer() for _ in range(n_layers)]
        self.backend = cached(self.inside, futures, *self.layers, max_bytes=max_bytes)
        self.asked: list[tuple[list[int], RowKind, float, Any]] = []
        self.refused: list[tuple[list[int], Exception]] = []
        self.was_full = False
        self.failed: set[int] = set()  # texts that made a request to the back end inside fail
        self.seen: list[list[tuple[int, int]]] = []

    def step(self, what: str, *how: Any) -> None:
        if what == "submit":
            self._submit(*how)
        elif what in ("full", "room"):
            self.inside.full = what == "full"
            self.was_full |= self.inside.full
        elif what in ("damage", "forget"):
            for layer in self.layers:
                layer.entries = {k: e[:-1] + b"?" for k, e in layer.entries.items()} if what == "damage" else {}
        elif what == "cancel":
            if waiting := [future for *_, future in self.asked if not future.done()]:
                waiting[how[0] % len(waiting)].cancel()
        elif requests := self.inside.open:
            request = requests[how[0] % len(requests)]
            if what == "compute":
                request.compute()
            elif what == "expire" and request.deadline < float("inf"):
                request.expire()
            elif what == "fail":
                position = how[0] % len(request.tokens)
                self.failed.add(int(request.tokens[position][0]))
                request.fail(position)

    def _submit(self, ids: list[int], kind: RowKind, deadline: float, caller: Caller) -> None:
        tokens = [TEXTS[id] for id in ids]
        seen: list[tuple[int, int]] = []
        try:
            future = self.backend.submit(
                tokens, kind=kind, deadline=deadline, caller=caller, progress=lambda *of: seen.append(of)
            )
        except (EmbeddingFailed, Overloaded) as error:
            self.refused.append((ids, error))
        else:
            self.asked.append((ids, kind, deadline, future))
            self.seen.append(seen)

    def check(self) -> None:
        """Every request is over, and as it should be."""
        for ids, refusal in self.refused:
            if isinstance(refusal, EmbeddingFailed):
                assert TEXTS[ids[refusal.index]][0] == -1
            else:
                assert self.was_full
        for (ids, kind, deadline, future), seen in zip(self.asked, self.seen, strict=True):
            tokens = [TEXTS[id] for id in ids]
            assert future.done()
            if future.cancelled():
                continue
            error = future.exception()
            if error is None:
                np.testing.assert_array_equal(future.result(), rows_of(tokens, kind))
                assert seen == sorted(set(seen))
                assert not ids or seen[-1] == (len(ids), len(ids))
            elif isinstance(error, EmbeddingFailed):
                assert tokens[error.index][0] in {*self.failed, -1}
            else:
                assert isinstance(error, DeadlineExceeded | Overloaded)
                assert isinstance(error, Overloaded) or deadline < float("inf")
        assert not self.inside.open
        assert not len(self.backend._flights)
        assert not self.backend.state.n_open

    def check_nothing_is_computed_for_nobody(self) -> None:
        if all(future.done() for *_, future in self.asked):
            assert not self.inside.open


@settings(deadline=None, max_examples=300)
@given(steps, st.integers(0, 2), st.sampled_from([0, 5_000, 1_000_000]))
def test_threads_get_what_they_asked_for(steps: list[Any], n_layers: int, max_bytes: int) -> None:
    run = Run(ThreadFutures(), n_layers, max_bytes)
    for step in steps:
        run.step(*step)
        run.check_nothing_is_computed_for_nobody()
    run.inside.full = False
    run.inside.compute_all()
    run.check()
    run.backend.close()


@settings(deadline=None, max_examples=300)
@given(steps, st.integers(0, 2), st.sampled_from([0, 5_000, 1_000_000]), st.data())
def test_tasks_get_what_they_asked_for(steps: list[Any], n_layers: int, max_bytes: int, data: st.DataObject) -> None:
    async def go() -> None:
        run = Run(LoopFutures(), n_layers, max_bytes)
        turns = data.draw(st.lists(st.integers(0, 3), min_size=len(steps), max_size=len(steps)))
        for step, n_turns in zip(steps, turns, strict=True):
            run.step(*step)
            for _ in range(n_turns):
                await asyncio.sleep(0)
        run.inside.full = False
        await until(lambda: all(future.done() for *_, future in run.asked), run.inside)
        await until(lambda: not run.inside.open and not run.backend.state.n_open, run.inside)
        run.check()
        await asyncio.to_thread(run.backend.close)

    asyncio.run(go())


async def until(over: Callable[[], bool], inside: Inside) -> None:
    """Compute until it is over; how long that takes decides nothing."""
    async with asyncio.timeout(60):
        while not over():
            inside.compute_all()
            await asyncio.sleep(0.0002)
