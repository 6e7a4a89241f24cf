"""What the live view says of models, and when streams get the past again."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from embellama_server.state import ServedModel, ServerState
from embellama_server.web import live
from embellama_server.web.snapshot import Sampler

from embellama.backend import PoolState, WorkerState


class Pool:
    """A back end in a state that a test says."""

    def __init__(self, workers: Sequence[WorkerState], n_workers: int = 2, **values: Any):
        known: dict[str, Any] = {
            "status": "ok",
            "n_ready": 1,
            "n_open": 0,
            "n_waiting": 0,
            "waiting_tokens": 0,
        } | values
        self.state = PoolState(workers=tuple(workers), n_workers=n_workers, **known)


def served(state: ServerState, pool: Any) -> list[ServedModel]:
    return [state.model(None)._replace(backend=pool)]


def worker(busy_s: float = 0, stage: Any = "ready", computing_s: float = 0) -> WorkerState:
    return WorkerState(busy_s, 5, 9, stage, 0 if stage == "gone" else 1, 0, computing_s)


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (worker(1), worker(1), 0),
        (worker(1), worker(1.5), 0.25),
        (worker(1), worker(1, computing_s=2), 1),  # a batch that takes longer than a sample
        (worker(1, computing_s=2), worker(3.5, computing_s=0.5), 0.5),
        (worker(1, computing_s=2), worker(1, "gone"), 0),  # lost with its batch
        (worker(1), worker(9), 1),
    ],
)
def test_the_busy_share_is_that_of_the_time_since_the_last_sample(
    state: ServerState, before: WorkerState, after: WorkerState, share: float
) -> None:
    sampler = Sampler()
    [first] = sampler.sample(served(state, Pool([before], 1)), 100.0)
    [second] = sampler.sample(served(state, Pool([after], 1)), 102.0)
    assert first.workers[0].busy == 0
    assert second.workers[0].busy == share


@pytest.mark.parametrize(
    ("stages", "places"),
    [
        ("ready ready", [0, 1]),
        ("gone ready", [0, 1]),
        ("gone gone", [0, 1]),
        ("ready gone ready", [0, 2]),  # a successor took another place, and nobody this one
        ("gone ready retired starting", [1, 2, 3]),
        ("gone gone ready", [0, 2]),
    ],
)
def test_a_place_without_a_process_is_shown_if_a_worker_is_missing(
    state: ServerState, stages: str, places: list[int]
) -> None:
    pool = Pool([worker(stage=stage) for stage in stages.split()])
    [model] = Sampler().sample(served(state, pool), 1.0)
    assert [worker.place for worker in model.workers] == places


def test_what_waits_has_seconds_once_the_rate_is_known(state: ServerState) -> None:
    for rate, seconds in ((0.0, None), (50.0, 2.0)):
        [model] = Sampler().sample(served(state, Pool([], n_waiting=3, waiting_tokens=100, rate=rate)), 1.0)
        assert (model.queue.requests, model.queue.tokens, model.queue.seconds) == (3, 100, seconds)


async def test_a_stream_that_misses_an_event_gets_the_past_again(
    state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PERIOD_S", 0.005)
    view = live.LiveView(state)

    def names(part: bytes) -> list[str]:
        return [line.removeprefix("event: ") for line in part.decode().splitlines() if line.startswith("event")]

    with view:
        events = view.events()
        assert names(await anext(events)) == ["past", "now"]
        assert names(await anext(events)) == ["now"]
        await asyncio.sleep(0.1)
        late = await anext(events)
        assert names(late) == ["past", "now"]
        past = msgspec.json.decode(late.split(b"data: ")[1].split(b"\n")[0])
        assert len(past["seconds"]) >= 598
        state.stop_reading()
        assert [part async for part in events] in ([], [late])
    assert [part async for part in view.events()] == []
