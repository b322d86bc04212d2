"""Traces by OpenTelemetry, sent to a collector over OTLP/HTTP. Nothing of a sample is in them.

POST /v1/score          the request; a child of the client's span where it sent `traceparent`
  read body
  prepare               a sample decoded, blurred and tokenised, with its wait for the thread that does it
  score                 its wait for an engine, and the engine's work
  answer                log-probs made into the answer
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from serve_app.request import CurrentRequest, current_request

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_EXPORT_SECONDS = 2  # for one attempt; a collector that is down must not hold up the end of a server
_NOTHING = nullcontext()


def collector_url(url: str) -> str:
    """Where traces are sent: `url` as it is, or with OTLP's own path where it has none.

    Raises ValueError for what isn't an http(s) URL, and where the exporter isn't installed.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r}: takes the URL of an OTLP/HTTP collector, as in http://localhost:4318")
    try:
        installed = importlib.util.find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise ValueError("needs OpenTelemetry's exporter: pip install 'vig-ray[traces]'")
    return parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else url


class Traces:
    """Sends spans to the collector at `url`, from a thread of its own.

    Where the collector doesn't keep up or doesn't answer, spans are dropped; no request waits for it. OpenTelemetry's
    variables hold here too: OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_....
    """

    def __init__(self, url: str) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        import vig_ray

        exporter = importlib.import_module(_EXPORTER).OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)
        resource = Resource.create({"service.version": vig_ray.__version__})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "vig-ray"}))
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("vig_ray.serve", vig_ray.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, request: CurrentRequest, method: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """The span of a whole request, which goes on the client's trace. `headers`: names in lower case."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(headers)
        with self._tracer.start_as_current_span(
            method, context=parent, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            request.tracer = self._tracer
            yield span

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.shutdown()


def end_of(span: Any, request: CurrentRequest, *, method: str, route: str | None, status: int | None) -> None:
    """Put what came of a request on its span. `route`: as the application names it, None for paths that it hasn't."""
    from opentelemetry.trace import StatusCode

    if route is not None:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.request.method", method)
    span.set_attribute("vig.request_id", request.id)
    span.set_attribute("vig.samples", request.samples)
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if request.error is not None:
        span.set_attribute("error.type", request.error)
    if status is None or status >= 500:  # a client's mistake is no error of this server
        span.set_status(StatusCode.ERROR)


def span(name: str) -> AbstractContextManager[None]:
    """A part of the current request; does nothing where no traces are sent."""
    tracer = current_request().tracer
    return _NOTHING if tracer is None else _part(tracer, name)


@contextmanager
def _part(tracer: Any, name: str) -> Iterator[None]:
    from opentelemetry.trace import StatusCode

    # An exception's text may hold parts of a sample, so only its kind is kept.
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as made:
        try:
            yield
        except BaseException as error:
            made.set_attribute("error.type", getattr(error, "kind", type(error).__name__))
            made.set_status(StatusCode.ERROR)
            raise
