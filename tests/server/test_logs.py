"""The log: one line a request with numbers and names, none of what clients wrote, and no cost when nobody reads it."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.server.service import MODEL
from tests.server.support import RawStream, Running, running_server, wait_until
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.server.observe.logs import LogFormat, logging_to
from tokenmill.server.observe.record import shown_params
from tokenmill.server.settings import ServerSettings

SECRET_KEY = "sk-sentinel-5b1d"
SECRET_TEXT = "xyzzy-sentinel-prompt"


@dataclass
class Logged:
    """A server and what it logs."""

    server: Running
    stream: io.StringIO

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def requests(self, count: int) -> list[dict[str, Any]]:
        """The lines of requests, once there are ``count``: a line follows the last byte of its answer."""

        def found() -> list[dict[str, Any]]:
            return [record for record in self.records() if record["logger"] == "tokenmill.request"]

        wait_until(lambda: len(found()) >= count, 5)
        return found()


@contextmanager
def logged(form: LogFormat = "json", **settings: Any) -> Iterator[Logged]:
    stream = io.StringIO()
    with logging_to(stream, form), running_server(ServerSettings(port=0, **settings), step_s=0.002) as server:
        yield Logged(server, stream)


def test_each_request_is_one_line_with_its_numbers() -> None:
    with logged() as log:
        answer = log.server.post("/v1/chat/completions", log.server.chat(seed=1), headers={"traceparent": TRACE})
        log.server.post("/v1/completions", {"model": "no", "prompt": "x"})
        log.server.get("/nowhere/at/all")
        chat, wrong, nowhere = log.requests(3)
    assert chat["request_id"] == answer.headers["x-request-id"]
    assert (chat["method"], chat["route"], chat["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (chat["outcome"], chat["level"], chat["tenant"]) == ("ok", "info", "default")
    usage, timing = answer.json()["usage"], answer.json()["timing"]
    assert (chat["prompt_tokens"], chat["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert chat["finish_reasons"] == ["length"]
    for name in ("queue_s", "prefill_s", "decode_s", "ttft_s"):
        assert chat[name] == pytest.approx(timing[name], abs=1e-5)
    assert chat["queue_s"] + chat["prefill_s"] + chat["decode_s"] <= chat["duration_s"]
    assert chat["trace_id"] == TRACE.split("-")[1]
    assert "params" not in chat
    assert (wrong["status"], wrong["outcome"], wrong["error"]) == (404, "refused", "model_not_found")
    assert "prompt_tokens" not in wrong
    assert (nowhere["route"], nowhere["status"]) == ("other", 404)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_stream_that_is_left_is_told_as_such() -> None:
    with logged() as log:
        stream = RawStream(log.server.port, "/v1/completions", log.server.completion(max_tokens=400, stream=True))
        stream.read_some()
        stream.close()
        (line,) = log.requests(1)
    assert (line["outcome"], line["error"], line["status"]) == ("gone", "disconnect", 200)
    assert line["completion_tokens"] < 400


def test_a_stream_that_fails_is_told_with_its_code() -> None:
    with logged() as log:
        log.server.executor._fail = lambda seq_id, position: "not finite" if position > 8 else None
        with pytest.raises(httpx.RemoteProtocolError):
            log.server.post("/v1/completions", log.server.completion(max_tokens=40, stream=True))
        (line,) = log.requests(1)
    assert (line["outcome"], line["status"], line["error"]) == ("failed", 200, "numerical_error")


def test_probes_are_not_told_unless_something_is_wrong() -> None:
    with logged() as log:
        for path in ("/health", "/health/live", "/metrics"):
            log.server.get(path)
        log.server.get("/v1/models")
        assert [line["route"] for line in log.requests(1)] == ["/v1/models"]
        log.server.app.context.draining = True
        log.server.get("/health")
        assert [line["status"] for line in log.requests(2)] == [200, 503]


def test_log_requests_adds_parameters_and_causes_and_no_text() -> None:
    with logged(log_requests=True) as log:
        body = log.server.completion(prompt=SECRET_TEXT, stop=[SECRET_TEXT], temperature=0.5, seed=7, n=2)
        log.server.post("/v1/completions", body)
        (line,) = log.requests(1)
    assert line["params"] == {"n": 2, "max_tokens": 4, "temperature": 0.5, "seed": 7}
    assert "decode" in line["causes"]


def test_parameters_that_hold_what_a_client_wrote_are_left_out() -> None:
    grammar = Grammar("regex", SECRET_TEXT)
    params = SamplingParams(
        stop=(SECRET_TEXT,), bad_words=(SECRET_TEXT,), logit_bias={5: 1.0}, grammar=grammar, top_k=3
    )
    assert shown_params(params) == {"top_k": 3}


@pytest.mark.parametrize("form", ["json", "text"])
def test_se05_no_key_and_no_text_in_logs_or_metrics(form: LogFormat) -> None:
    """Neither in what goes well nor in what fails, with everything told that can be asked for."""
    with logged(form, api_key=SECRET_KEY, log_requests=True) as log:
        headers = {"authorization": f"Bearer {SECRET_KEY}", "x-request-id": SECRET_TEXT, "user-agent": SECRET_TEXT}
        server = log.server
        bodies = [
            ("/v1/completions", server.completion(prompt=SECRET_TEXT, stop=SECRET_TEXT, user=SECRET_TEXT)),
            ("/v1/chat/completions", {**server.chat(), "messages": [{"role": "user", "content": SECRET_TEXT}]}),
            ("/v1/completions", server.completion(prompt=SECRET_TEXT, temperature=SECRET_TEXT)),
            ("/v1/completions", {"model": SECRET_TEXT, "prompt": "x"}),
            ("/v1/embeddings", {"model": "test/model", "input": SECRET_TEXT}),
            (f"/{SECRET_TEXT}", {}),
        ]
        for path, body in bodies:
            server.post(path, body, headers=headers)
        server.post("/v1/completions", server.completion(), headers={"authorization": f"Bearer {SECRET_KEY}x"})
        server.executor.broken = True
        server.post("/v1/completions", server.completion(prompt=SECRET_TEXT), headers=headers)
        wait_until(lambda: any("503" in line for line in log.lines()), 5)
        page = server.get("/metrics", headers=headers).text
        lines = "\n".join(log.lines())
    assert len(lines.splitlines()) >= len(bodies)
    for text in (lines, page):
        assert SECRET_KEY not in text
        assert SECRET_TEXT not in text


def test_se05_a_line_cannot_be_broken_or_coloured() -> None:
    for form in ("text", "json"):
        stream = io.StringIO()
        with logging_to(stream, form):  # type: ignore[arg-type]
            logging.getLogger("tokenmill.test").info("a\r\n2026 INFO forged \x1b[31mred\x9b")
            try:
                raise ValueError("b\r\nforged \x1b[0m")
            except ValueError:
                logging.getLogger("tokenmill.test").exception("failed")
        text = stream.getvalue()
        assert not set("\r\x1b\x9b") & set(text)
        if form == "json":
            assert [json.loads(line)["level"] for line in text.splitlines()] == ["info", "error"]
        else:
            assert all(line.startswith(("20", "  | ")) for line in text.splitlines())


def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    """The reader of the pipe has stalled: lines are dropped, and logging takes no longer than ever."""
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as pipe:
        log = logging.getLogger("tokenmill.test")
        with logging_to(pipe, "json") as writer:
            began_s = time.monotonic()
            for _ in range(12_000):
                log.info("x" * 100)
            assert time.monotonic() - began_s < 5
            assert writer.num_dropped > 1_000
            drained: list[bytes] = []
            reader = threading.Thread(target=lambda: drained.extend(iter(lambda: os.read(reading, 2**20), b"")))
            reader.start()
            wait_until(writer._lines.empty, 5)
            log.info("after")
    reader.join(5)
    text = b"".join(drained).decode()
    assert f"({writer.num_dropped} lines of the log were dropped" in text
    assert '"after"' in text
    os.close(reading)


def test_a_response_in_the_background_is_told_when_it_has_ended() -> None:
    with logged() as log:
        body = {"model": MODEL, "input": "Hi", "max_output_tokens": 60, "background": True}
        answer = log.server.post("/v1/responses", body)
        assert answer.status_code == 200, answer.text
        (line,) = log.requests(1)
    assert line["completion_tokens"] == 60
    assert line["duration_s"] > 60 * 0.002
    assert line["outcome"] == "ok"
