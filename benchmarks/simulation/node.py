"""`Node`: a server on a machine: its front, the real scheduler and its workers.

submit ──► front ──► Scheduler ── pump ──► a worker computes a batch ──► pump, front ──► answered
                        └─ full: refused                    fail: what is open is lost
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from benchmarks.simulation.costs import FRONT_IN, Costs
from benchmarks.simulation.machine import Machine, Process
from embellama.errors import Overloaded
from embellama.scheduler import Assignment, Limits, Scheduler

#: Called once with how a request ended: "ok", "full" (503) or "lost" (the connection was closed).
Answered = Callable[[str], None]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a server.

    Attributes:
        n_workers: Its workers, of one thread each.
        max_batch_tokens: Most tokens in a batch.
        max_batch_size: Most texts in a batch.
        queue_size: Most requests that wait.
    """

    n_workers: int = 1
    max_batch_tokens: int = 192
    max_batch_size: int = 256
    queue_size: int = 1024


class _Open(NamedTuple):
    n_texts: int
    answered: Answered


class Node:
    """A server.

    Attributes:
        is_up: Whether it takes connections.
        n_requests: Requests that it answered with vectors.
    """

    def __init__(self, machine: Machine, costs: Costs, shape: Shape, slowness: float = 1.0, seed: int = 0):
        """Start one, ready, whose work takes `slowness` times as long as that of others; `seed` is for its batches."""
        self._costs, self._shape = costs, shape
        self._random = random.Random(seed)
        # What sleeps takes nobody's core.
        place = Machine(machine.clock, [n + 1.0 for n in range(shape.n_workers)]) if costs.sleeping else machine
        self.front = Process(machine, slowness, wake_s=costs.front_wake_s)
        self.workers = [Process(place, slowness, nice=True) for _ in range(shape.n_workers)]
        self.n_requests = 0
        self.is_up = False
        self.start()

    def start(self) -> None:
        """Start again, with nothing to do."""
        shape = self._shape
        limits = Limits(
            max_batch_tokens=shape.max_batch_tokens,
            max_batch_size=shape.max_batch_size,
            n_threads_busy=1,
            n_threads_alone=1,
            n_slots=2,
            max_waiting=shape.queue_size,
        )
        self._scheduler = Scheduler(limits)
        for worker in range(shape.n_workers):
            self._scheduler.worker_ready(worker)
        self._open: dict[int, _Open] = {}
        self._tokens: dict[int, Sequence[int]] = {}
        self._unread: dict[int, Answered] = {}  # requests that are read, before the scheduler has them
        self._n_submitted = 0
        self.is_up = True

    @property
    def busy_s(self) -> float:
        """Seconds of a core that its workers' batches took, of all of them together."""
        return sum(worker.busy_s for worker in self.workers)

    def submit(self, n_tokens: Sequence[int], answered: Answered) -> None:
        """Answer a request whose texts have so many tokens each."""
        if not self.is_up:
            answered("lost")
            return
        self._n_submitted += 1
        number = self._n_submitted
        self._unread[number] = answered
        self.front.do(self._costs.front_s(len(n_tokens)) * FRONT_IN, lambda: self._read(number, n_tokens))

    def fail(self) -> None:
        """End at once, as when a machine is gone; every open request is lost."""
        self.is_up = False
        for process in (self.front, *self.workers):
            process.kill()
        lost = [*self._unread.values(), *(each.answered for each in self._open.values())]
        self._unread.clear()
        self._open.clear()
        for answered in lost:
            answered("lost")

    def _read(self, number: int, n_tokens: Sequence[int]) -> None:
        answered = self._unread.pop(number)
        try:
            id = self._scheduler.submit(n_tokens)
        except Overloaded:
            answered("full")
            return
        self._open[id] = _Open(len(n_tokens), answered)
        self._tokens[id] = n_tokens
        self._pump()

    def _pump(self) -> None:
        for assignment in self._scheduler.assign():
            self._compute(assignment)

    def _compute(self, assignment: Assignment) -> None:
        total = sum(self._tokens[text.request][text.position] for text in assignment.texts)
        seconds = self._costs.batch_s(total) * self._random.choice(self._costs.spread)
        self.workers[assignment.worker].do(seconds, lambda: self._computed(assignment))

    def _computed(self, assignment: Assignment) -> None:
        finished = self._scheduler.complete(assignment.batch, assignment.worker).finished
        self._pump()
        for id in finished:
            n_texts = self._open[id].n_texts
            self.front.do(self._costs.front_s(n_texts) * (1 - FRONT_IN), lambda id=id: self._answer(id))  # type: ignore[misc]

    def _answer(self, id: int) -> None:
        del self._tokens[id]
        self.n_requests += 1
        self._open.pop(id).answered("ok")
