"""Simulate servers under a load.

Plan, Costs ── simulate ──► Prediction          many machines, one server on each
            ── simulate_here ──► Prediction     clients, balancer and servers on one machine, as they can be measured
"""

import random
from collections.abc import Sequence

import msgspec

from benchmarks.simulation.balancer import Balancer, Policy
from benchmarks.simulation.clock import Clock
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.loads import Arrivals, Clients, Draw, Load, diurnal
from benchmarks.simulation.machine import Machine, Process
from benchmarks.simulation.node import Node, Shape


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Machines, and what is asked of them.

    Attributes:
        n_nodes: Machines, each with one server.
        shape: The server's settings.
        n_cores: Whole cores of each machine.
        policy: As `Balancer` takes it.
        rate: Requests a second, on average.
        swing: By how much of it the rate rises and falls in a day.
        day_s: Seconds of a simulated day; queues forget within seconds, so it may be short.
        seconds: How long requests come.
        failures_a_day: Times that a machine is gone in a day, on average.
        repair_s: Seconds until it is there again, with its server still to start.
        slow_share: Share of machines that are slow.
        slowness: How many times as long work takes on those.
        seed: Of all that is random.
    """

    n_nodes: int
    shape: Shape = Shape()
    n_cores: int = 2
    policy: Policy = "leastconn"
    rate: float
    swing: float = 0.0
    day_s: float = 120.0
    seconds: float = 60.0
    failures_a_day: float = 0.0
    repair_s: float = 10.0
    slow_share: float = 0.0
    slowness: float = 2.0
    seed: int = 0


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation saw.

    Attributes:
        texts_per_s: Texts answered a second.
        p50_ms, p99_ms: Latencies of requests.
        worker_use: Share of the time in which workers had something to do, counted in seconds of a core.
        front_use: The same of the fronts, each of which has one core.
        n_sent: Requests sent.
        n_full: Requests that every server asked refused (503).
        n_lost: Requests whose servers went, again and again.
    """

    texts_per_s: float
    p50_ms: float
    p99_ms: float
    worker_use: float
    front_use: float
    n_sent: int
    n_full: int = 0
    n_lost: int = 0


def simulate(plan: Plan, costs: Costs, draw: Draw) -> Prediction:
    """Simulate a plan; `draw` gives the tokens of each text of a request."""
    clock, chance = Clock(), random.Random(plan.seed)
    speeds = tuple(float(n) for n in range(1, plan.n_cores + 1))
    slow = set(chance.sample(range(plan.n_nodes), round(plan.slow_share * plan.n_nodes)))
    nodes = [
        Node(Machine(clock, speeds), costs, plan.shape, plan.slowness if i in slow else 1.0, plan.seed + i)
        for i in range(plan.n_nodes)
    ]
    load = Arrivals(clock, Balancer(clock, nodes, plan.policy), draw, plan.seed + 1)
    load.start(diurnal(plan.rate, plan.swing, plan.day_s), plan.rate * (1 + plan.swing), plan.seconds)
    if plan.failures_a_day:
        for node in nodes:
            _Failures(clock, node, plan, costs.ready_s, chance.randrange(1 << 30))
    clock.run(plan.seconds)
    return _seen(load, nodes, plan.seconds)


def simulate_here(n_pools: int, n_clients: int, seconds: float, shape: Shape, costs: Costs, draw: Draw) -> Prediction:
    """Simulate servers with their balancer and their clients on one machine, as `benchmarks.scale` measures them."""
    clock = Clock()
    machine = Machine(clock, costs.speeds)
    nodes = [Node(machine, costs, shape, seed=i) for i in range(n_pools)]
    balancer = Balancer(clock, nodes, "leastconn", Process(machine, wake_s=costs.balancer_wake_s), costs.balancer_s)
    load = Clients(clock, balancer, draw, 1)
    load.start(n_clients, seconds, Process(machine, wake_s=costs.client_wake_s), costs.client_s)
    clock.run(seconds)
    return _seen(load, nodes, seconds)


class _Failures:
    """Has one machine go, and come again."""

    def __init__(self, clock: Clock, node: Node, plan: Plan, ready_s: float, seed: int):
        self._clock, self._node, self._plan, self._ready_s = clock, node, plan, ready_s
        self._random = random.Random(seed)
        self._wait()

    def _wait(self) -> None:
        self._clock.after(self._random.expovariate(self._plan.failures_a_day / self._plan.day_s), self._go)

    def _go(self) -> None:
        self._node.fail()
        self._clock.after(self._random.expovariate(1 / self._plan.repair_s) + self._ready_s, self._come)

    def _come(self) -> None:
        self._node.start()
        self._wait()


def _seen(load: Load, nodes: Sequence[Node], seconds: float) -> Prediction:
    n_workers = sum(len(node.workers) for node in nodes)
    return Prediction(
        texts_per_s=load.n_texts / seconds,
        p50_ms=load.percentile_ms(50),
        p99_ms=load.percentile_ms(99),
        worker_use=sum(node.busy_s for node in nodes) / seconds / n_workers,
        front_use=sum(node.front.busy_s for node in nodes) / seconds / len(nodes),
        n_sent=load.n_sent,
        n_full=load.refused.get("full", 0),
        n_lost=load.refused.get("lost", 0),
    )
