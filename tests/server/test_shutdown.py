"""Stopping: FT-11 and FT-12, against a process that gets real signals."""

from __future__ import annotations

import signal
import time

import httpx
import pytest

from tests.server.service import MODEL
from tests.server.support import RawStream, error_of, events, server_process, wait_until
from tokenmill.server.serve import EXIT_CUT_OFF, EXIT_KILLED, EXIT_OK

COMPLETIONS = "/v1/completions"


def streams(url: str, count: int, max_tokens: int) -> list[RawStream]:
    """Streams that have begun."""
    port = int(url.rsplit(":", 1)[1])
    body = {"model": MODEL, "prompt": "Once", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    made = [RawStream(port, COMPLETIONS, body) for _ in range(count)]
    for stream in made:
        assert stream.read_some(1)
    return made


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_ft11_a_signal_lets_running_requests_finish(sig: signal.Signals) -> None:
    """FT-11: not ready at once and still live, new requests refused with a time to come back, exit 0."""
    with server_process(step_s=0.02, drain_s=20) as (process, url), httpx.Client() as client:
        assert client.get(f"{url}/health/ready").status_code == 200
        running = streams(url, 20, 120)
        process.send_signal(sig)
        wait_until(lambda: client.get(f"{url}/health/ready").status_code == 503, 0.5)
        live, ready = (client.get(f"{url}/health/{name}").json() for name in ("live", "ready"))
        assert (live["status"], live["state"]) == ("ok", "draining")
        assert (ready["status"], ready["state"]) == ("draining", "draining")
        assert ready["since"] <= time.time()
        refused = client.post(url + COMPLETIONS, json={"model": MODEL, "prompt": "a"})
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "server_shutting_down"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.headers["connection"] == "close"
        for stream in running:
            data = stream.read_all()
            assert data.rstrip().endswith(b"0")  # HTTP's own end
            assert data.count(b'"finish_reason":"length"') == 1
            assert b"data: [DONE]" in data
        assert process.wait(5) == EXIT_OK
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_ft12_what_outlasts_the_drain_ends_with_an_error() -> None:
    """FT-12: an error frame, not an end; the process goes within the timeout and five seconds."""
    with server_process(step_s=0.02, drain_s=0.5) as (process, url):
        running = streams(url, 4, 500)
        started_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        for stream in running:
            data = stream.read_all()
            frames = [line for line in data.split(b"\r\n") if line.startswith(b"data: ")]
            assert b'"code":"server_shutting_down"' in frames[-1]
            assert b"[DONE]" not in data
            assert not data.endswith(b"0\r\n\r\n")
        assert process.wait(5.5) == EXIT_CUT_OFF
        assert time.monotonic() - started_s < 5.5


def test_ft12_an_unfinished_answer_is_a_503() -> None:
    """FT-12: for those who did not stream."""
    with server_process(step_s=0.02, drain_s=0.3) as (process, url):
        port = int(url.rsplit(":", 1)[1])
        whole = RawStream(port, COMPLETIONS, {"model": MODEL, "prompt": "Once", "max_tokens": 500})
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        answer = whole.read_all()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"server_shutting_down"' in answer
        assert process.wait(5) == EXIT_CUT_OFF


def test_ft12_a_second_signal_ends_at_once() -> None:
    """FT-12."""
    with server_process(step_s=0.02, drain_s=60) as (process, url):
        running = streams(url, 4, 500)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        started_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == EXIT_KILLED
        assert time.monotonic() - started_s < 3.0
        assert all(b"[DONE]" not in stream.read_all() for stream in running)


def test_an_idle_server_stops_at_once_although_connections_are_open() -> None:
    with server_process(step_s=0.0, drain_s=60) as (process, url), httpx.Client() as client:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 2, "stream": True}
        assert events(client.post(url + COMPLETIONS, json=body).text)[-1] == "[DONE]"
        started_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == EXIT_OK
        assert time.monotonic() - started_s < 3
