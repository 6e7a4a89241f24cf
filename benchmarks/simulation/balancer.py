"""`Balancer`: requests go to one of many servers, and to another one if that is gone or full, as HAProxy does it.

submit ──► the balancer's own work ──► pick ──► Node ──► answered
                                        ▲         │
                                        └─────────┘ lost or full: another one, a few times
"""

from collections.abc import Sequence
from typing import Literal

from benchmarks.simulation.clock import Action, Clock
from benchmarks.simulation.machine import Process
from benchmarks.simulation.node import Answered, Node

Policy = Literal["leastconn", "roundrobin"]

# deploy/haproxy/haproxy.cfg: retries; check inter 1s fall 2 rise 1.
RETRIES = 4
CHECK_S = 1.0
FALL = 2


class Balancer:
    """Spreads requests over servers."""

    def __init__(
        self,
        clock: Clock,
        nodes: Sequence[Node],
        policy: Policy,
        process: Process | None = None,
        request_s: float = 0.0,
    ):
        """Begin with servers that are all up.

        Args:
            clock: Of all that is simulated.
            nodes: The servers.
            policy: To the one that has the fewest open requests, or to one after another.
            process: What its own work is done by; None if that takes no time.
            request_s: Seconds of its own work for a request, half of them for the answer.
        """
        self._clock, self._nodes, self._policy = clock, list(nodes), policy
        self._process, self._half_s = process, request_s / 2
        self._n_open = [0] * len(nodes)
        self._failed_checks = [0] * len(nodes)
        self._next = 0
        clock.after(CHECK_S, self._check)

    def submit(self, n_tokens: Sequence[int], answered: Answered) -> None:
        """Have a request answered; "lost" and "full" come back only if no server takes it."""
        self._work(lambda: self._try(n_tokens, answered, RETRIES, -1))

    def _try(self, n_tokens: Sequence[int], answered: Answered, n_left: int, before: int) -> None:
        at = self._pick(before)

        def ended(how: str) -> None:
            self._n_open[at] -= 1
            if how != "ok" and n_left:
                self._try(n_tokens, answered, n_left - 1, at)
            else:
                self._work(lambda: answered(how))

        self._n_open[at] += 1
        self._nodes[at].submit(n_tokens, ended)

    def _work(self, done: Action) -> None:
        if self._process and self._half_s:
            self._process.do(self._half_s, done)
        else:
            done()

    def _pick(self, before: int) -> int:
        """Choose a server, of those that answer, another one than before."""
        n = len(self._nodes)
        turn = [(self._next + i) % n for i in range(n)]
        usable = [i for i in turn if self._failed_checks[i] < FALL and i != before] or turn
        at = usable[0] if self._policy == "roundrobin" else min(usable, key=self._n_open.__getitem__)
        self._next = (at + 1) % n
        return at

    def _check(self) -> None:
        for i, node in enumerate(self._nodes):
            self._failed_checks[i] = 0 if node.is_up else self._failed_checks[i] + 1
        self._clock.after(CHECK_S, self._check)
