"""Spans: one a request and one a stage, from the account, as children of the caller's; nothing that a client wrote."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from tests.server.service import MODEL
from tests.server.support import Running, running_server, wait_until
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.server.observe.tracing import Tracer, collector_of, tracer_to
from tokenmill.server.settings import ServerSettings

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
SECRET = "xyzzy-sentinel"


class Traced:
    def __init__(self, server: Running) -> None:
        self.server = server
        self._exporter = InMemorySpanExporter()
        self._tracer = Tracer(self._exporter)
        server.app.context.observer.tracer = self._tracer

    def spans(self) -> list[ReadableSpan]:
        """Of the one request that was made; they follow the last byte of its answer."""

        def all_there() -> bool:
            self._tracer.flush()
            return any(span.kind == SpanKind.SERVER for span in self._exporter.get_finished_spans())

        wait_until(all_there, 5)
        found = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return found

    def server_span(self) -> ReadableSpan:
        (span,) = [span for span in self.spans() if span.kind == SpanKind.SERVER]
        return span


@contextmanager
def traced(**options: Any) -> Iterator[Traced]:
    with running_server(**{"step_s": 0.002, **options}) as server:
        yield Traced(server)


@pytest.fixture(scope="module")
def shared() -> Iterator[Traced]:
    with traced() as made:
        yield made


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_the_stages_are_children_of_the_requests_span(shared: Traced) -> None:
    body = shared.server.chat(max_tokens=8, temperature=0.5, top_p=0.9)
    answer = shared.server.post("/v1/chat/completions", body, headers=CALLER)
    *stages, span = shared.spans()
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert [stage.name for stage in stages] == ["queue", "prefill", "decode"]
    assert all(stage.parent is not None and stage.parent.span_id == span.context.span_id for stage in stages)
    assert all(stage.context is not None and stage.context.trace_id == span.context.trace_id for stage in stages)
    timing = answer.json()["timing"]
    for stage in stages:
        assert seconds(stage) == pytest.approx(timing[f"{stage.name}_s"], abs=1e-6)
    for earlier, later in itertools.pairwise(stages):
        assert abs((later.start_time or 0) - (earlier.end_time or 0)) < 1000, "end to end, in nanoseconds"
    assert (span.start_time or 0) <= (stages[0].start_time or 0)
    assert (stages[-1].end_time or 0) <= (span.end_time or 0) + 1e6
    usage = answer.json()["usage"]
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "tokenmill.request.id": answer.headers["x-request-id"],
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 8,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert span.attributes is not None
    assert {name: span.attributes.get(name) for name in expected} == expected
    conventional = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert {name for name in span.attributes if name.startswith("gen_ai.")} <= conventional
    assert span.status.status_code == StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "tokenmill"


def test_without_a_caller_a_request_begins_a_trace_and_a_bad_header_is_none(shared: Traced) -> None:
    bad = ["00-0-0-00", f"00-{'0' * 32}-{SPAN_ID}-01", f"00-{TRACE_ID}-{'g' * 16}-01", "x" * 5000]
    seen = set()
    for header in (None, *bad):
        headers = {} if header is None else {"traceparent": header}
        assert shared.server.post("/v1/completions", shared.server.completion(), headers=headers).status_code == 200
        span = shared.server_span()
        assert span.parent is None
        assert span.context is not None
        seen.add(span.context.trace_id)
    assert len(seen) == len(bad) + 1


def test_a_caller_that_samples_nothing_is_heeded(shared: Traced) -> None:
    server = shared.server
    server.post("/v1/completions", server.completion(), headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
    server.post("/v1/completions", server.completion(seed=3), headers=CALLER)
    assert len(shared.spans()) == 4, "only the second request's"


def test_what_was_refused_or_failed_has_its_code(shared: Traced) -> None:
    shared.server.post("/v1/completions", shared.server.completion(temperature=9))
    span = shared.server_span()
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["http.response.status_code"]) == ("invalid_value", 400)
    assert span.status.status_code == StatusCode.UNSET, "the client's mistake is not the server's failure"
    shared.server.executor._fail = lambda seq_id, position: "not finite"
    shared.server.post("/v1/completions", shared.server.completion(stream=True))
    shared.server.executor._fail = None
    span = shared.server_span()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "numerical_error"
    assert span.status.status_code == StatusCode.ERROR


def test_embeddings_and_several_prompts(shared: Traced) -> None:
    shared.server.post("/v1/embeddings", {"model": MODEL, "input": ["a", "b", "c"]})
    *stages, span = shared.spans()
    assert span.attributes is not None
    assert (span.attributes["gen_ai.operation.name"], span.attributes["tokenmill.prompts"]) == ("embeddings", 3)
    assert span.attributes["gen_ai.usage.output_tokens"] == 0
    assert [stage.name for stage in stages] == ["queue", "prefill", "decode"], "of the slowest"


def test_nothing_that_a_client_wrote_is_in_a_span(shared: Traced) -> None:
    server = shared.server
    body = server.completion(prompt=SECRET, stop=SECRET, user=SECRET, bad_words=[SECRET])
    headers = {**CALLER, "user-agent": SECRET, "x-request-id": SECRET, "tracestate": "a=b"}
    for method, path in (("POST", "/v1/completions"), ("GET", f"/v1/models/{SECRET}")):
        server.http.request(method, server.url + path, json=body, headers=headers)
        text = "".join(span.to_json() for span in shared.spans())
        assert SECRET not in text


def test_probes_and_other_addresses_have_no_spans(shared: Traced) -> None:
    for path in ("/health", "/metrics", "/nowhere"):
        shared.server.get(path)
    shared.server.post("/v1/completions", shared.server.completion())
    assert shared.server_span().name == "POST /v1/completions"


# ---- over the wire ---------------------------------------------------------------------------------------


class Collector:
    """Takes OTLP over HTTP, as a collector would."""

    def __init__(self) -> None:
        bodies: list[tuple[str, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.bodies = bodies
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_spans_arrive_at_a_collector_when_the_server_ends() -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with Collector() as collector:
        with running_server(ServerSettings(port=0, otlp=collector.url)) as server:
            server.post("/v1/completions", server.completion(), headers=CALLER)
        (path, body), *_ = collector.bodies
    message = ExportTraceServiceRequest.FromString(body)
    spans = [span for part in message.resource_spans for scope in part.scope_spans for span in scope.spans]
    assert path == "/v1/traces"
    assert sorted(span.name for span in spans) == ["POST /v1/completions", "decode", "prefill", "queue"]
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}


def test_a_collector_that_is_not_there_costs_the_spans_only() -> None:
    with running_server(ServerSettings(port=0, otlp="http://127.0.0.1:9")) as server:
        assert server.post("/v1/completions", server.completion()).status_code == 200
    assert server.exit_code == 0


def test_the_address_of_a_collector() -> None:
    assert collector_of("http://host:4318") == "http://host:4318/v1/traces"
    assert collector_of("https://host/otlp/traces") == "https://host/otlp/traces"
    for bad in ("localhost:4318", "grpc://host", "http://"):
        with pytest.raises(ConfigError, match="otlp must be an address"):
            ServerSettings(otlp=bad)


def test_without_the_sdk_the_remedy_is_named() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
        "from tokenmill.server.observe.tracing import tracer_to\n"
        "try:\n    tracer_to('http://localhost:4318')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print('opentelemetry.sdk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == [
        f"{SetupError.__name__} --otlp needs OpenTelemetry: pip install 'tokenmill[otel]'",
        "False",
    ]
    assert callable(tracer_to)
