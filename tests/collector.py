"""A collector of traces: a server that takes OTLP over HTTP, and keeps the spans it gets.

a server with --otlp-endpoint ── POST /v1/traces ──► Collector ──► spans(), by the id of their trace
"""

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import wait_until


class Collector:
    """Takes spans on a free port.

    Attributes:
        address: Where it listens.
        url: What `--otlp-endpoint` takes.
        resource: What the spans' sender says of itself.
    """

    def __init__(self) -> None:
        self._spans: dict[str, list[Span]] = defaultdict(list)
        self.resource: dict[str, Any] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = ("127.0.0.1", self._server.server_port)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def _take(self, message: ExportTraceServiceRequest) -> None:
        for resource_spans in message.resource_spans:
            self.resource = attributes_of(resource_spans.resource)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self._spans[span.trace_id.hex()].append(span)

    def trace(self, trace_id: str) -> tuple[Span, dict[str, Span]]:
        """Wait for a request's spans; return its own, and those within it by name."""

        def roots() -> list[Span]:
            return [span for span in list(self._spans[trace_id]) if span.kind == Span.SPAN_KIND_SERVER]

        wait_until(lambda: bool(roots()), "the trace is there", 20)  # its own span is sent last
        [root] = roots()
        return root, {span.name: span for span in self._spans[trace_id] if span is not root}

    def has(self, trace_id: str) -> bool:
        """Tell whether there is any span of a trace."""
        return trace_id in self._spans

    def __enter__(self) -> "Collector":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def attributes_of(told: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource as Python's values."""
    return {each.key: _value(each.value) for each in told.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(item) for item in found.values] if kind == "array_value" else found
