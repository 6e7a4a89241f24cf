"""The simulation of many servers (`benchmarks/simulation`): nothing is lost, and known formulas hold.

No model and no processes: all time is simulated.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.balancer import Balancer
from benchmarks.simulation.clock import Clock
from benchmarks.simulation.cluster import Plan, simulate, simulate_here
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.loads import Arrivals, Clients, Load, diurnal
from benchmarks.simulation.machine import NICE_WEIGHT, Machine, Process
from benchmarks.simulation.node import Node, Shape

ONE = Costs(batches=((10, 0.010),))  # every batch takes 10 ms, and nothing else takes any time
EXPONENTIAL = Costs(batches=((10, 0.010),), spread=tuple(-math.log(1 - (i + 0.5) / 2000) for i in range(2000)))
REAL = Costs(
    batches=((17, 0.002), (192, 0.013)),
    spread=(0.9, 1.0, 1.3),
    front_wake_s=0.0001,
    front_request_s=0.0001,
    front_text_s=0.00002,
    balancer_s=0.0001,
    client_s=0.0001,
)
ALONE = Shape(max_batch_size=1, queue_size=1_000_000)  # a request after another, as in the formulas


def one_text(_: random.Random) -> Sequence[int]:
    return [10]


def queue(clock: Clock, costs: Costs, n_workers: int = 1, n_cores: int = 16) -> Node:
    shape = msgspec.structs.replace(ALONE, n_workers=n_workers)
    return Node(Machine(clock, [float(n + 1) for n in range(n_cores)]), costs, shape, seed=1)


def arrived(costs: Costs, rate: float, n_workers: int = 1, seconds: float = 250.0) -> Load:
    """Let requests come at random to a server, until all are answered."""
    clock = Clock()
    load = Arrivals(clock, Balancer(clock, [queue(clock, costs, n_workers)], "leastconn"), one_text, 5)
    load.start(lambda now: rate, rate, seconds)
    clock.run(seconds + 100)
    assert load.n_ended == load.n_sent
    return load


@pytest.mark.parametrize("use", [0.3, 0.6, 0.8])
def test_a_queue_with_constant_service_waits_as_pollaczek_and_khinchine_say(use: float) -> None:
    load = arrived(ONE, rate=use / 0.010)
    wait_s = use * 0.010 / (2 * (1 - use))  # M/D/1
    assert sum(load.latencies) / len(load.latencies) == pytest.approx(0.010 + wait_s, rel=0.07)


def test_a_queue_with_exponential_service_has_the_latencies_of_m_m_1() -> None:
    load = arrived(EXPONENTIAL, rate=70.0)
    # The time in such a system is exponential, with a mean of 1 / (100 - 70) s.
    assert sum(load.latencies) / len(load.latencies) == pytest.approx(1 / 30, rel=0.06)
    assert load.percentile_ms(99) == pytest.approx(1000 * 4.605 / 30, rel=0.10)


def test_two_workers_wait_as_erlang_says() -> None:
    load = arrived(EXPONENTIAL, rate=140.0, n_workers=2)
    # M/M/2 at 0.7: the chance to wait is 2 × 0.49 / 1.7, and the wait 1 / (200 - 140) s.
    expected = 0.010 + (2 * 0.49 / 1.7) / 60
    assert sum(load.latencies) / len(load.latencies) == pytest.approx(expected, rel=0.06)


def test_littles_law_holds_for_closed_clients() -> None:
    clock = Clock()
    node = queue(clock, REAL)
    load = Clients(clock, Balancer(clock, [node], "leastconn"), one_text, 1)
    load.start(20, end=20.0)
    clock.run(25.0)
    mean_s = sum(load.latencies) / len(load.latencies)
    assert load.open_s / 20.0 == pytest.approx(20, rel=0.02)
    assert len(load.latencies) / 20.0 * mean_s == pytest.approx(20, rel=0.02)


@given(st.lists(st.tuples(st.floats(0.001, 5), st.booleans()), min_size=1, max_size=12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_machine_does_all_work_and_no_more_than_its_cores_can(jobs: list[tuple[float, bool]], n_cores: int) -> None:
    clock = Clock()
    machine = Machine(clock, [float(n + 1) for n in range(n_cores)])
    ended: list[float] = []
    for seconds, nice in jobs:
        Process(machine, nice=nice).do(seconds, lambda: ended.append(clock.now))
    clock.run()
    total = sum(seconds for seconds, _ in jobs)
    assert len(ended) == len(jobs)
    assert max(ended) >= max(total / n_cores, max(seconds for seconds, _ in jobs)) - 1e-6
    assert max(ended) <= total + 1e-6


@pytest.mark.parametrize(("n_cores", "front_s"), [(1, 1 + NICE_WEIGHT), (2, 1.0)])
def test_nice_processes_have_less_where_cores_are_short(n_cores: int, front_s: float) -> None:
    clock = Clock()
    machine, ended = Machine(clock, [n + 1.0 for n in range(n_cores)]), dict[str, float]()
    for name, nice in (("worker", True), ("front", False)):
        Process(machine, nice=nice).do(1.0, lambda name=name: ended.update({name: clock.now}))  # type: ignore[misc]
    clock.run()
    assert ended == {"front": pytest.approx(front_s), "worker": pytest.approx(2.0 / n_cores)}


PLANS: list[dict[str, Any]] = [
    {"n_nodes": 1, "rate": 200.0},
    {"n_nodes": 8, "rate": 2000.0, "policy": "roundrobin", "slow_share": 0.25},
    {"n_nodes": 8, "rate": 1500.0, "failures_a_day": 20.0, "repair_s": 1.0, "swing": 0.3, "day_s": 1.0},
    {"n_nodes": 2, "rate": 5000.0, "shape": Shape(queue_size=20)},
]


@pytest.mark.parametrize("values", PLANS, ids=lambda values: str(values["n_nodes"]))
def test_nothing_is_lost_and_one_seed_is_one_result(values: dict[str, Any]) -> None:
    plan = Plan(seconds=1.0, **values)

    def draw(chance: random.Random) -> list[int]:
        return [chance.randint(5, 60) for _ in range(chance.randint(1, 4))]

    first, again = (simulate(plan, REAL, draw) for _ in range(2))
    other = simulate(msgspec.structs.replace(plan, seed=9), REAL, draw)
    assert first == again != other
    assert 0 < first.worker_use <= 1.0
    assert first.n_sent == pytest.approx(plan.rate * plan.seconds, rel=0.3)


@given(st.integers(1, 5), st.integers(0, 1 << 20), st.sampled_from(["leastconn", "roundrobin"]))
@settings(max_examples=10, deadline=None)
def test_every_request_ends_once_whatever_fails(n_nodes: int, seed: int, policy: Any) -> None:
    clock, chance = Clock(), random.Random(seed)
    nodes = [Node(Machine(clock, [1.0, 2.0]), REAL, Shape(queue_size=30), seed=i) for i in range(n_nodes)]
    load = Arrivals(clock, Balancer(clock, nodes, policy), one_text, seed)
    load.start(lambda now: 800.0, 800.0, 2.0)
    for _ in range(6):
        node, at = chance.choice(nodes), chance.uniform(0, 2)
        clock.after(at, lambda node=node: node.is_up and node.fail())  # type: ignore[misc]
        clock.after(at + chance.uniform(0.1, 1), lambda node=node: node.is_up or node.start())  # type: ignore[misc]
    clock.run(10.0)
    assert load.n_ended == load.n_sent
    assert load.n_sent == len(load.latencies) + sum(load.refused.values())


def test_one_machine_that_goes_costs_nobody_a_request_where_others_have_room() -> None:
    plan = Plan(n_nodes=4, rate=200.0, seconds=20.0, failures_a_day=1.0, repair_s=1.0, day_s=60.0)
    seen = simulate(plan, REAL, one_text)
    assert (seen.n_full, seen.n_lost) == (0, 0)


def test_least_connections_spare_slow_machines() -> None:
    plan = Plan(n_nodes=10, rate=1200.0, seconds=4.0, slow_share=0.2, slowness=4.0, shape=Shape(max_batch_size=1))
    fair, blind = (
        simulate(msgspec.structs.replace(plan, policy=policy), REAL, one_text) for policy in ("leastconn", "roundrobin")
    )
    assert fair.p99_ms < blind.p99_ms


def test_a_day_swings_around_its_mean() -> None:
    rate = diurnal(100.0, 0.3, 24.0)
    assert [round(rate(hour)) for hour in (0, 6, 12, 18, 24)] == [100, 130, 100, 70, 100]


def test_workers_that_sleep_share_no_cores() -> None:
    costs = REAL.with_sleepers(0.0005)
    one, four = (simulate_here(n, 64, 3.0, Shape(), costs, one_text) for n in (1, 4))
    assert one.texts_per_s == pytest.approx(1 / (10 * 0.0005), rel=0.05)
    assert four.texts_per_s == pytest.approx(4 * one.texts_per_s, rel=0.05)


def test_servers_that_share_a_machine_share_its_cores() -> None:
    one, two, four = (simulate_here(n, 32, 2.0, Shape(), REAL, one_text) for n in (1, 2, 4))
    assert two.texts_per_s > 1.3 * one.texts_per_s
    assert four.texts_per_s < 1.2 * two.texts_per_s
