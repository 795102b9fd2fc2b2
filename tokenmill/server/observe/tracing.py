"""OpenTelemetry spans, made when a request has ended, from its record: nothing is traced while tokens are made.

::

    POST /v1/chat/completions     kind SERVER, child of the caller's span where ``traceparent`` names one
    ├── queue                     waiting for a first step, and again after each preemption
    ├── prefill                   computing the prompt
    └── decode                    from the first token to the last

The three stages lie end to end and have exactly the lengths that the request's account gives them; with several prompts
they are those of the one that took longest. Where a request was preempted its waits are told together, in ``queue``.
Names follow the conventions for HTTP and for generative AI (``gen_ai.…``). No prompt, no answer and no key is in a
span.

The SDK is asked for only when tracing is (``pip install 'tokenmill[otel]'``). It sends spans in batches from a thread
of its own and drops them when the collector does not keep up. Its own environment variables hold:
``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_RESOURCE_ATTRIBUTES``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tokenmill import __version__
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.server.observe.record import RequestRecord, Work, shown_params

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT_S = 5.0
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
}
"""``gen_ai.operation.name`` by route."""
_PARAMS = {"max_tokens", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed"}
"""Sampling parameters that the conventions name, as ``gen_ai.request.…``."""


def tracer_to(url: str) -> Tracer:
    """Spans to the OTLP collector at ``url`` (HTTP with protobuf).

    Raises:
        ConfigError: ``url`` is not an address.
        SetupError: the SDK is not installed.
    """
    address = collector_of(url)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise SetupError("--otlp needs OpenTelemetry: pip install 'tokenmill[otel]'") from error
    return Tracer(OTLPSpanExporter(endpoint=address, timeout=EXPORT_TIMEOUT_S))


def check_tracing(url: str | None) -> None:
    """Raise what ``tracer_to`` would, before anything slow is begun."""
    if url is not None:
        tracer_to(url).close()


def collector_of(url: str) -> str:
    """The address that spans are sent to: ``url``, with the usual path where it has none. Raises ``ConfigError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"otlp must be an address such as http://localhost:4318, not {url[:200]!r}")
    return url if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}{TRACES_PATH}"


class Tracer:
    """Turns records into spans.

    Args:
        exporter: where they go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "tokenmill", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tokenmill", __version__)

    def ended(self, record: RequestRecord, headers: dict[str, str] | None = None) -> None:
        """Make the spans of a request that has ended; ``headers``: its ``traceparent`` and ``tracestate``."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers or {})
        epoch_s = time.time() - time.monotonic()  # of the clock that the record's moments are on
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            parent,
            SpanKind.SERVER,
            _attributes(record),
            start_time=_ns(epoch_s + record.began_s),
        )
        if record.outcome in ("failed", "unavailable", "gone"):
            span.set_status(Status(StatusCode.ERROR))
        if record.work is not None:
            self._stages(record.work, set_span_in_context(span), epoch_s)
        span.end(_ns(epoch_s + record.ended_s))

    def flush(self) -> None:
        """Send what waits."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits and end the thread; takes at most as long as one export."""
        self._provider.shutdown()

    def _stages(self, work: Work, parent: Context, epoch_s: float) -> None:
        account = work.account
        if account is None:
            return
        begin_s = epoch_s + work.submitted_s
        stages = (("queue", account.queue_s), ("prefill", account.prefill_s), ("decode", account.decode_s))
        for name, seconds in stages:
            span = self._tracer.start_span(
                name, parent, attributes=_stage_attributes(name, work), start_time=_ns(begin_s)
            )
            begin_s += seconds
            span.end(_ns(begin_s))


def _attributes(record: RequestRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "tokenmill.request.id": record.request_id,
        "tokenmill.tenant": record.tenant,
    }
    error = record.error or (record.work.error if record.work else None)
    if error is not None:
        found["error.type"] = error
    return found if record.work is None else found | _work_attributes(record, record.work)


def _work_attributes(record: RequestRecord, work: Work) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.provider.name": "tokenmill",
        "gen_ai.operation.name": OPERATIONS.get(record.route, "text_completion"),
        "gen_ai.request.model": work.model,
        "gen_ai.response.model": work.model,
        "gen_ai.usage.input_tokens": work.prompt_tokens,
        "gen_ai.usage.output_tokens": work.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": work.cached_tokens,
        "tokenmill.prompts": work.num_prompts,
    }
    if work.finish_reasons:
        found["gen_ai.response.finish_reasons"] = work.finish_reasons
    if work.first_token_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = work.first_token_s
    if work.params.num_sequences > 1:
        found["gen_ai.request.choice.count"] = work.params.n
    shown = shown_params(work.params)
    return found | {f"gen_ai.request.{name}": shown[name] for name in _PARAMS & shown.keys()}


def _stage_attributes(stage: str, work: Work) -> dict[str, Any]:
    """The causes of its time, in seconds, and what it counted."""
    assert work.account is not None
    prefixes = ("queue", "preempted") if stage == "queue" else (stage,)
    found: dict[str, Any] = {
        f"tokenmill.cause.{cause.replace(':', '.')}": seconds
        for cause, seconds in work.account.causes.items()
        if cause.partition(":")[0] in prefixes
    }
    if stage == "queue":
        found["tokenmill.preemptions"] = work.account.num_preemptions
    if stage == "prefill":
        found["tokenmill.chunks"] = work.account.num_chunks
    return found


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
