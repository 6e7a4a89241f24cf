"""What is counted of files and batches, for Prometheus, read at each scrape."""

from collections.abc import Iterable
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from embellama_server.jobs.records import BatchStatus
from embellama_server.jobs.service import BatchService


class BatchCollector(Collector):
    """Reads the state of the batches."""

    def __init__(self, service: BatchService):
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Make families, as a collector of `prometheus_client` does."""
        batches = GaugeMetricFamily("embellama_jobs", "OpenAI batches that are kept.", labels=["status"])
        lines = CounterMetricFamily("embellama_job_lines", "Lines of OpenAI batches that were done.", labels=["result"])
        kept = GaugeMetricFamily("embellama_job_bytes", "Bytes that files and OpenAI batches take.")
        counts = self._service.counts()
        for status in get_args(BatchStatus):
            batches.add_metric([status], counts.get(status, 0))
        for result, n in zip(("completed", "failed"), self._service.n_lines, strict=True):
            lines.add_metric([result], n)
        kept.add_metric([], self._service.folder.n_bytes)
        return [batches, lines, kept]
