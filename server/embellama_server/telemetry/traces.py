"""`Tracer`: spans of requests for OpenTelemetry, sent by OTLP over HTTP, with `--otlp-endpoint` (extra `otel`).

a request's traceparent ── Tracer.begin ──► Trace ── Trace.end, with its RequestRecord ──► spans ──► a bounded queue
                                              │                                            a thread, to the collector ◄┘
                                              └──► traceresponse, the access log

embeddings minilm                     one for each request of a dialect; its parent is the client's span
├── tokenize                          read, parsed, turned into tokens
├── cache                             the cache was asked for rows
├── queue                             the texts waited for a worker
├── compute                           workers computed rows, or another request's were waited for
└── write                             the answer was written and sent

While a request is under way only numbers are kept; spans are made of them when it is over. Names are those of
OpenTelemetry's conventions for HTTP and for generative AI. The module is imported when it is used.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from embellama import __version__
from embellama_server.telemetry.access import MAX_PATH
from embellama_server.telemetry.record import RequestRecord, Timeline

logger = logging.getLogger("embellama.traces")

# Spans that wait to be sent, about 2 kB each; further ones drive out the oldest.
QUEUED_SPANS = 4096

# Spans of one message; fewer cost more messages, more hold the event loop up for longer while they are encoded.
SENT_SPANS = 256
SEND_EVERY_MS = 1000

# For one message to the collector, when it is sent again included; then its spans are dropped.
SEND_S = 5

# How long the end of the server waits for the last spans to be sent.
FLUSH_S = 2.0

# How often the log says that spans are not sent.
WARN_S = 60.0

OTLP_PATH = "/v1/traces"

# `error.type` of a request whose client hung up.
CLIENT_GONE = "client_gone"

_PROPAGATOR = TraceContextTextMapPropagator()
_SCOPE = InstrumentationScope("embellama", __version__)


class Tracer:
    """Makes the spans of requests, and has a thread send them."""

    def __init__(self, endpoint: str, sample_ratio: float):
        """Start the thread.

        Args:
            endpoint: The collector's URL; `OTLP_PATH` is added if it does not end so.
            sample_ratio: The share of requests that get spans, among those that no client decided on by a traceparent.
        """
        ours = {"service.name": "embellama", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME win.
        self.resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        self._sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        self._ids = RandomIdGenerator()
        _report_rarely()
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(
            url if url.endswith(OTLP_PATH) else url + OTLP_PATH, timeout=SEND_S, meter_provider=NoOpMeterProvider()
        )
        self._queue = BatchSpanProcessor(exporter, QUEUED_SPANS, SEND_EVERY_MS, SENT_SPANS)

    def begin(self, scope: Scope) -> "Trace":
        """Find a request's place in a trace: below the client's span, or at the top of a new trace."""
        given: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name in (b"traceparent", b"tracestate"):
                key, text = name.decode(), value.decode("latin-1")
                # One that comes twice means nothing, and neither do two of them joined.
                given[key] = f"{given[key]},{text}" if key in given else text
        around = _PROPAGATOR.extract(given, Context()) if given else Context()
        parent = get_current_span(around).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        sampled = self._sampler.should_sample(around, trace_id, "").decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        here = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, parent.trace_state)
        return Trace(self, scope, here, parent if parent.is_valid else None)

    def child(self, of: SpanContext) -> SpanContext:
        """Make the place of a span within another one."""
        return SpanContext(of.trace_id, self._ids.generate_span_id(), False, of.trace_flags, of.trace_state)

    def send(self, span: ReadableSpan) -> None:
        """Queue a span."""
        self._queue.on_end(span)

    def close(self) -> None:
        """Send what is queued, for `FLUSH_S` at most."""
        # The SDK's own wait has no bound that could be set.
        closing = threading.Thread(target=self._queue.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_S)


class Trace:
    """The place of one request in a trace.

    Attributes:
        trace_id: Of the trace, as 32 hexadecimal digits.
    """

    __slots__ = ("_here", "_parent", "_scope", "_tracer", "trace_id")

    def __init__(self, tracer: Tracer, scope: Scope, here: SpanContext, parent: SpanContext | None):
        self._tracer, self._scope, self._here, self._parent = tracer, scope, here, parent
        self.trace_id = f"{here.trace_id:032x}"

    @property
    def response(self) -> bytes:
        """The value of `traceresponse`: which span answered, and whether it was sampled."""
        return b"00-%s-%016x-%02x" % (self.trace_id.encode(), self._here.span_id, self._here.trace_flags)

    def end(self, record: RequestRecord) -> None:
        """Make the spans of a request that is over, if it is one of those that get any."""
        if not self._here.trace_flags.sampled:
            return
        # ReadableSpans are made here, and not by the SDK's tracer: that takes the event loop 210 us for a request, this
        # 25 us. Wall time is looked up once, so that the spans of a request fit together though the clock is set.
        past = time.time_ns() - time.monotonic_ns()
        for name, start, end in _phases(record.times):
            self._tracer.send(
                ReadableSpan(
                    name,
                    self._tracer.child(self._here),
                    self._here,
                    self._tracer.resource,
                    start_time=past + int(start * 1e9),
                    end_time=past + int(end * 1e9),
                    instrumentation_scope=_SCOPE,
                )
            )
        failed = record.status >= 500 or not record.status
        self._tracer.send(
            ReadableSpan(
                f"{record.operation} {record.model}".rstrip(),
                self._here,
                self._parent,
                self._tracer.resource,
                {**_http_attributes(self._scope, record), **_operation_attributes(record)},
                kind=SpanKind.SERVER,
                status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
                start_time=past + int(record.times.came * 1e9),
                end_time=past + int(record.times.ended * 1e9),
                instrumentation_scope=_SCOPE,
            )
        )


def _phases(times: Timeline) -> Iterator[tuple[str, float, float]]:
    """List the phases that a request came to, with their starts and ends."""
    for name, start, end in zip(("tokenize", "cache", "queue", "compute", "write"), times, times[1:], strict=False):
        if end > start:
            yield name, start, end


def _http_attributes(scope: Scope, record: RequestRecord) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "http.route": record.path,
        "url.path": scope["path"][:MAX_PATH],
        "url.scheme": scope["scheme"],
    }
    if record.status:
        found["http.response.status_code"] = record.status
    if record.error or not record.status:
        found["error.type"] = record.error or CLIENT_GONE
    if scope.get("client"):
        found["client.address"] = scope["client"][0]
    if scope.get("server"):
        found["server.address"], found["server.port"] = scope["server"]
    return found


def _operation_attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    """Say what was asked of which model, in the words of the conventions for generative AI as far as they have any."""
    found: dict[str, AttributeValue] = {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": "embellama",
        "gen_ai.usage.input_tokens": record.n_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.n_cached_tokens,
        "embellama.request_id": record.request_id,
        "embellama.texts": record.n_texts,
    }
    if asked := record.asked_model[:MAX_PATH] or record.model:
        found["gen_ai.request.model"] = asked
    if record.model:
        found["gen_ai.response.model"] = record.model
    if record.prompt:
        found["embellama.prompt"], found["embellama.prompt.sha256"] = record.prompt, record.prompt_hash
    if record.dimensions:
        found["gen_ai.embeddings.dimension.count"] = record.dimensions
    if record.formats:
        found["gen_ai.request.encoding_formats"] = record.formats
    return found


class _Rarely(logging.Handler):
    """Passes on one of the SDK's complaints each `WARN_S`: it has one for each message, and each span dropped."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + WARN_S
            logger.warning("spans are not sent: %s", record.getMessage())


def _report_rarely() -> None:
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers, sdk.propagate = [_Rarely()], False
