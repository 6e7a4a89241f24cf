"""`Metrics`: count requests and batches, and read the pools' state, for Prometheus.

Exchange ──► requests, texts, tokens, seconds              Dispatcher ──► batches
pools ──► waiting, workers, their time and memory, read at each scrape (`Metrics.page`)

Label sets are bounded: paths and models are those that exist, statuses those of `problems.STATUSES`, and a worker is
known by its place in the pool, not by its process.
"""

import bisect
import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from embellama.backend import Backend
from embellama_server.telemetry.recent import RecentRequests
from embellama_server.telemetry.record import PHASES, RequestRecord

__all__ = ["CONTENT_TYPE", "Metrics"]

# A short text takes a few milliseconds, a request of 2048 of them many seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)


class Metrics(Collector):
    """All metrics of one server.

    What is counted for every request is kept as plain numbers, and made Prometheus' families at a scrape: its own
    counters and histograms take a lock for each number, which was a twelfth of what a request costs the front.

    Attributes:
        pools: Each model's back end, by the model's name.
        recent: The requests of the last minutes, where somebody may look at them.
    """

    def __init__(self) -> None:
        self.pools: dict[str, Backend[Any]] = {}
        self.recent: RecentRequests | None = None
        registry = self._registry = CollectorRegistry()
        PlatformCollector(registry)
        ProcessCollector(registry=registry)
        GCCollector(registry)
        registry.register(_Pools(self.pools))
        self._requests: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._answered: dict[str, _Answered] = collections.defaultdict(_Answered)
        self._batches: dict[str, _Batches] = collections.defaultdict(_Batches)
        registry.register(self)

    def add(self, collector: Collector) -> None:
        """Write what another collector counts, too."""
        self._registry.register(collector)

    def request(self, record: RequestRecord) -> None:
        """Count a request, and, if it was answered with success, its texts and how long each of `PHASES` took."""
        self._requests[record.path, str(record.status), record.model] += 1
        if self.recent:
            self.recent.add(record)
        if record.status != 200:
            return
        answered = self._answered[record.model]
        answered.n_texts += record.n_texts
        answered.n_tokens += record.n_tokens
        answered.n_truncated += record.n_truncated
        for histogram, value in zip(answered.seconds, record.times.seconds, strict=True):
            histogram.observe(value)

    def batch(self, model: str, n_texts: int, n_tokens: int) -> None:
        """Count a batch that was computed."""
        batches = self._batches[model]
        batches.texts.observe(n_texts)
        batches.tokens.observe(n_tokens)

    def page(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Make families of what was counted, as a collector of `prometheus_client` does."""
        requests = _counter("requests", "Requests; status 0 for clients that hung up.", "path", "status", "model")
        texts = _counter("texts", "Texts of good requests.", "model")
        tokens = _counter("tokens", "Tokens of good requests, special ones included.", "model")
        truncated = _counter("truncated_texts", "Texts of which tokens were left out.", "model")
        seconds = _histogram("request_seconds", "Seconds of good requests.", "model", "phase")
        batch_texts = _histogram("batch_texts", "Texts computed together.", "model")
        batch_tokens = _histogram("batch_tokens", "Tokens computed together.", "model")
        for labels, n in self._requests.items():
            requests.add_metric(labels, n)
        for model, answered in self._answered.items():
            texts.add_metric([model], answered.n_texts)
            tokens.add_metric([model], answered.n_tokens)
            truncated.add_metric([model], answered.n_truncated)
            for phase, values in zip(PHASES, answered.seconds, strict=True):
                seconds.add_metric([model, phase], values.buckets(), values.sum)
        for model, batches in self._batches.items():
            batch_texts.add_metric([model], batches.texts.buckets(), batches.texts.sum)
            batch_tokens.add_metric([model], batches.tokens.buckets(), batches.tokens.sum)
        return [requests, texts, tokens, truncated, seconds, batch_texts, batch_tokens]


class _Histogram:
    """How many values came, by size.

    Attributes:
        sum: The sum of all values.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound and how many values are not above it, as Prometheus counts."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self._counts), strict=True))


class _Answered:
    """What one model's good requests came to."""

    def __init__(self) -> None:
        self.n_texts = self.n_tokens = self.n_truncated = 0
        self.seconds = [_Histogram(SECONDS) for _ in PHASES]


class _Batches:
    """What one model's batches came to."""

    def __init__(self) -> None:
        self.texts, self.tokens = _Histogram(TEXTS), _Histogram(TOKENS)


def _gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"embellama_{name}", about, labels=labels)


def _counter(name: str, about: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"embellama_{name}", about, labels=labels)


def _histogram(name: str, about: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"embellama_{name}", about, labels=labels)


class _Pools(Collector):
    """Reads the state of the pools at each scrape."""

    def __init__(self, pools: Mapping[str, Backend[Any]]):
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        waiting = _gauge("queue_requests", "Requests waiting for a worker.", "model")
        tokens = _gauge("queue_tokens", "Tokens waiting for a worker.", "model")
        wait = _gauge("wait_seconds", "Seconds of work that waits, at the rate measured lately; 0 if unknown.", "model")
        workers = _gauge("workers", "Workers asked for.", "model")
        ready = _gauge("workers_ready", "Workers that serve.", "model")
        restarts = _counter("worker_restarts", "Workers that died and were started again.", "model")
        busy = _counter("worker_busy_seconds", "Seconds in which a worker had a batch.", "model", "worker")
        memory = _gauge("worker_memory_bytes", "Memory of a worker's own, without mapped files.", "model", "worker")
        resident = _gauge("worker_resident_bytes", "Resident memory of a worker.", "model", "worker")
        hits = _counter("cache_hits", "Texts whose rows a layer of the cache had.", "model", "layer")
        misses = _counter("cache_misses", "Texts whose rows a layer of the cache did not have.", "model", "layer")
        evictions = _counter("cache_evictions", "Entries that a layer dropped to make room.", "model", "layer")
        kept = _gauge("cache_bytes", "Bytes that a layer of the cache takes.", "model", "layer")
        for model, backend in self._pools.items():
            pool = backend.state
            waiting.add_metric([model], pool.n_waiting)
            tokens.add_metric([model], pool.waiting_tokens)
            wait.add_metric([model], pool.wait_s)
            workers.add_metric([model], pool.n_workers)
            ready.add_metric([model], pool.n_ready)
            restarts.add_metric([model], pool.n_restarts)
            for place, state in enumerate(pool.workers):
                busy.add_metric([model, str(place)], state.busy_s)
                memory.add_metric([model, str(place)], state.memory)
                resident.add_metric([model, str(place)], state.resident)
            for layer in pool.cache:
                hits.add_metric([model, layer.name], layer.n_hits)
                misses.add_metric([model, layer.name], layer.n_misses)
                evictions.add_metric([model, layer.name], layer.n_evicted)
                if layer.n_bytes is not None:
                    kept.add_metric([model, layer.name], layer.n_bytes)
        pool_metrics = [waiting, tokens, wait, workers, ready, restarts, busy, memory, resident]
        return [*pool_metrics, hits, misses, evictions, kept]
