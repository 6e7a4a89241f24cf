"""What the live view shows of the models and their workers at one moment.

ServedModel, PoolState ── Sampler.sample ──► ModelSnapshot, with each worker's share of the time since the last sample
"""

from collections.abc import Iterable

import msgspec

from embellama.backend import LayerState, PoolState, PoolStatus, WorkerStage, WorkerState
from embellama_server.state import ServedModel


class WorkerSnapshot(msgspec.Struct, frozen=True):
    """One place in a pool.

    Attributes:
        place: Its number, from 0.
        stage: How far its process is in its life; ``gone`` while there is none.
        pid: Its process id; 0 while there is none.
        busy: Share of the time in which it had a batch, 0 to 1.
        is_computing: Whether it has a batch now.
        memory: Bytes of its own; those of files that it maps are beside them in `resident`.
        n_restarts: Processes that took the place after the first.
    """

    place: int
    stage: WorkerStage
    pid: int
    busy: float
    is_computing: bool
    memory: int
    resident: int
    n_restarts: int


class QueueSnapshot(msgspec.Struct, frozen=True):
    """What waits for a worker; `seconds` at the rate measured lately, None while that is unknown."""

    requests: int
    tokens: int
    seconds: float | None


class LayerSnapshot(msgspec.Struct, frozen=True):
    """What a layer of the cache did; `n_bytes` is None where only the store itself knows."""

    name: str
    n_hits: int
    n_misses: int
    n_bytes: int | None
    trouble: str


class ModelSnapshot(msgspec.Struct, frozen=True):
    """A model and its workers; threads for one batch while all are busy, and while one works alone."""

    name: str
    format: str
    dimensions: int
    n_ctx: int
    compute: str
    n_threads: tuple[int, int]
    status: PoolStatus
    trouble: str
    n_ready: int
    n_workers: int
    n_open: int
    queue: QueueSnapshot
    workers: list[WorkerSnapshot]
    cache: list[LayerSnapshot]


class Sampler:
    """Takes snapshots of models, and knows the one before."""

    def __init__(self) -> None:
        self._busy_s: dict[tuple[str, int], float] = {}  # by model and place
        self._at = 0.0

    def sample(self, models: Iterable[ServedModel], now: float) -> list[ModelSnapshot]:
        """Describe models at the time `now`; workers' shares are 0 the first time."""
        seconds, self._at = now - self._at if self._at else 0.0, now
        before, self._busy_s = self._busy_s, {}
        return [self._model(model, before, seconds) for model in models]

    def _model(self, model: ServedModel, before: dict[tuple[str, int], float], seconds: float) -> ModelSnapshot:
        pool, info, config = model.backend.state, model.info, model.config
        workers = []
        for place, worker in enumerate(pool.workers):
            known, busy_s = (info.name, place), worker.busy_s + worker.computing_s
            # A batch that was lost with its worker is in no sum any more.
            share = max(busy_s - before.get(known, busy_s), 0.0) / seconds if seconds else 0.0
            self._busy_s[known] = busy_s
            workers.append(_worker(place, worker, min(share, 1.0)))
        return ModelSnapshot(
            name=info.name,
            format=info.quantization,
            dimensions=info.dim,
            n_ctx=info.n_ctx,
            compute=info.compute,
            n_threads=(config.n_threads_busy, config.n_threads_alone),
            status=pool.status,
            trouble=pool.trouble,
            n_ready=pool.n_ready,
            n_workers=pool.n_workers,
            n_open=pool.n_open,
            queue=_queue(pool),
            workers=_taken(workers, pool.n_workers),
            cache=[_layer(layer) for layer in pool.cache],
        )


def _taken(workers: list[WorkerSnapshot], n_workers: int) -> list[WorkerSnapshot]:
    """Leave out places that stay empty: those that successors did not take over."""
    n_missing = n_workers - sum(worker.stage != "gone" for worker in workers)
    kept = []
    for worker in workers:
        if worker.stage == "gone":
            if n_missing <= 0:
                continue
            n_missing -= 1
        kept.append(worker)
    return kept


def _worker(place: int, worker: WorkerState, share: float) -> WorkerSnapshot:
    return WorkerSnapshot(
        place=place,
        stage=worker.stage,
        pid=worker.pid,
        busy=round(share, 3),
        is_computing=worker.computing_s > 0,
        memory=worker.memory,
        resident=worker.resident,
        n_restarts=worker.n_restarts,
    )


def _queue(pool: PoolState) -> QueueSnapshot:
    seconds = round(pool.waiting_tokens / pool.rate, 2) if pool.rate else None
    return QueueSnapshot(pool.n_waiting, pool.waiting_tokens, seconds)


def _layer(layer: LayerState) -> LayerSnapshot:
    return LayerSnapshot(layer.name, layer.n_hits, layer.n_misses, layer.n_bytes, layer.trouble)
