"""`Metrics`: count requests and batches, and read the pools' state, for Prometheus.

Exchange ──► requests, texts, tokens, seconds              Dispatcher ──► batches
pools ──► waiting, workers, their time and memory, read at each scrape (`Metrics.page`)

Label sets are bounded: paths and models are those that exist, statuses those of `problems.STATUSES`, and a worker is
known by its place in the pool, not by its process.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from embellama.backend import Backend

__all__ = ["CONTENT_TYPE", "Metrics"]

# A short text takes a few milliseconds, a request of 2048 of them many seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)

PHASES = ("tokenization", "queue", "inference", "encoding", "total")


class Metrics:
    """All metrics of one server."""

    def __init__(self, pools: Mapping[str, Backend[Any]]):
        """Start at 0; `pools` has each model's back end by the model's name, and may be filled later."""
        registry = self._registry = CollectorRegistry()
        PlatformCollector(registry)
        ProcessCollector(registry=registry)
        GCCollector(registry)
        registry.register(_Pools(pools))

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"embellama_{name}", about, labels, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"embellama_{name}", about, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests; status 0 for clients that hung up.", "path", "status", "model")
        self._texts = counter("texts", "Texts of good requests.", "model")
        self._tokens = counter("tokens", "Tokens of good requests, special ones included.", "model")
        self._truncated = counter("truncated_texts", "Texts of which tokens were left out.", "model")
        self._seconds = histogram("request_seconds", "Seconds of good requests.", SECONDS, "model", "phase")
        self._batch_texts = histogram("batch_texts", "Texts computed together.", TEXTS, "model")
        self._batch_tokens = histogram("batch_tokens", "Tokens computed together.", TOKENS, "model")

        # Finding a label's counter takes longer than counting.
        self._of_model = functools.cache(self._find)
        self._of_batches = functools.cache(
            lambda model: (self._batch_texts.labels(model), self._batch_tokens.labels(model))
        )

    def request(self, path: str, status: int, model: str) -> None:
        """Count a request."""
        self._requests.labels(path, str(status), model).inc()

    def answered(self, model: str, n_texts: int, n_tokens: int, n_truncated: int, seconds: Iterable[float]) -> None:
        """Count a request that was answered with success, and how long each of `PHASES` took."""
        counters, histograms = self._of_model(model)
        for counter, amount in zip(counters, (n_texts, n_tokens, n_truncated), strict=True):
            counter.inc(amount)
        for histogram, value in zip(histograms, seconds, strict=True):
            histogram.observe(value)

    def _find(self, model: str) -> tuple[list[Counter], list[Histogram]]:
        counters = [counter.labels(model) for counter in (self._texts, self._tokens, self._truncated)]
        return counters, [self._seconds.labels(model, phase) for phase in PHASES]

    def batch(self, model: str, n_texts: int, n_tokens: int) -> None:
        """Count a batch that was computed."""
        texts, tokens = self._of_batches(model)
        texts.observe(n_texts)
        tokens.observe(n_tokens)

    def page(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Pools(Collector):
    """Reads the state of the pools at each scrape."""

    def __init__(self, pools: Mapping[str, Backend[Any]]):
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        def gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"embellama_{name}", about, labels=["model", *labels])

        def counter(name: str, about: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"embellama_{name}", about, labels=["model", *labels])

        waiting = gauge("queue_requests", "Requests waiting for a worker.")
        tokens = gauge("queue_tokens", "Tokens waiting for a worker.")
        workers = gauge("workers", "Workers asked for.")
        ready = gauge("workers_ready", "Workers that serve.")
        restarts = counter("worker_restarts", "Workers that died and were started again.")
        busy = counter("worker_busy_seconds", "Seconds in which a worker had a batch.", "worker")
        memory = gauge("worker_memory_bytes", "Memory of a worker's own, without mapped files.", "worker")
        resident = gauge("worker_resident_bytes", "Resident memory of a worker.", "worker")
        for model, backend in self._pools.items():
            pool = backend.state
            waiting.add_metric([model], pool.n_waiting)
            tokens.add_metric([model], pool.waiting_tokens)
            workers.add_metric([model], pool.n_workers)
            ready.add_metric([model], pool.n_ready)
            restarts.add_metric([model], pool.n_restarts)
            for place, state in enumerate(pool.workers):
                busy.add_metric([model, str(place)], state.busy_s)
                memory.add_metric([model, str(place)], state.memory)
                resident.add_metric([model, str(place)], state.resident)
        return [waiting, tokens, workers, ready, restarts, busy, memory, resident]
