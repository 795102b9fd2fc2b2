"""Streams and clients that leave: ST-02 to ST-04, ST-06 to ST-08, AC-04."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import httpx
import openai
import pytest

from tests.server.service import MODEL
from tests.server.support import RawStream, Running, error_of, events, running_server, wait_until
from tokenmill.server.serve import EXIT_ENGINE_DIED
from tokenmill.server.settings import ServerSettings
from tokenmill.server.sse import EventStream

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(("path", "stream"), [(CHAT, False), (COMPLETIONS, False), (CHAT, True)])
def test_st02_a_client_that_leaves_frees_its_blocks(server: Running, path: str, stream: bool) -> None:
    """ST-02, and half a second is the promise."""
    body = server.chat(max_tokens=480) if path == CHAT else server.completion(max_tokens=480)
    gone = RawStream(server.port, path, {**body, "stream": stream})
    wait_until(lambda: server.stats()["running"] == 1, 2.0)
    gone.close()
    assert server.wait_idle(0.5) < 0.5
    assert server.metric("tokenmill_request_abort_total") >= 1


def test_st02_a_request_in_the_queue_is_given_up_too() -> None:
    """ST-02."""
    with running_server(step_s=0.01, max_seqs=1) as running:
        first = RawStream(running.port, COMPLETIONS, running.completion(max_tokens=400))
        wait_until(lambda: running.stats()["running"] == 1, 2.0)
        second = RawStream(running.port, COMPLETIONS, running.completion(max_tokens=400))
        wait_until(lambda: running.stats()["waiting"] == 1, 2.0)
        second.close()
        wait_until(lambda: running.stats()["waiting"] == 0, 0.5)
        assert running.stats()["running"] == 1
        first.close()
        running.wait_idle(0.5)


def test_st03_a_client_that_does_not_read_is_cut_off() -> None:
    """ST-03: buffers stay small, the request is aborted at the write timeout, others go on."""
    with running_server(ServerSettings(port=0, write_stall_s=1.0)) as running:
        body = running.chat(max_tokens=450, n=8, stream=True, logprobs=True, top_logprobs=20)
        slow = [RawStream(running.port, CHAT, body, receive_bytes=4096) for _ in range(3)]
        started_s = time.monotonic()
        while 'request_abort_total{cause="write_stall"} 3.0' not in running.get("/metrics").text:
            for connection in list(running.server.server_state.connections):
                assert connection.transport.get_write_buffer_size() < 2**20  # type: ignore[union-attr]
            assert running.post(COMPLETIONS, running.completion()).status_code == 200
            assert time.monotonic() - started_s < 20
        running.wait_idle(0.5)
        for stream in slow:
            assert b"[DONE]" not in stream.read_all()


def test_a_slow_reader_that_reads_is_served(server: Running) -> None:
    """The write timeout is about no progress, not about slowness."""
    stream = RawStream(server.port, COMPLETIONS, server.completion(stream=True, max_tokens=30), receive_bytes=2048)
    data = b""
    while b"[DONE]" not in data:
        data += stream.read_some(512)
        time.sleep(0.005)
    stream.close()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_st04_a_dead_engine_is_never_a_clean_end(path: str) -> None:
    """ST-04: an error frame, no ``[DONE]``, no closing chunk; nothing of the exception's text; the process ends."""
    with running_server(step_s=0.005) as running:
        body = running.chat(max_tokens=400) if path == CHAT else running.completion(max_tokens=400)
        stream = RawStream(running.port, path, {**body, "stream": True})
        seen = stream.read_some(4096)
        running.executor.broken = True
        seen += stream.read_all()
        assert not seen.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in seen
        frames = [line for line in seen.split(b"\r\n") if line.startswith(b"data: ")]
        error = json.loads(frames[-1].removeprefix(b"data: "))["error"]
        assert error["type"] == "server_error"
        assert error["code"] == "engine_failed"
        assert b"secret" not in seen
        running.thread.join(10)
        assert running.exit_code == EXIT_ENGINE_DIED


def test_st04_the_official_client_raises() -> None:
    """ST-04, as an application sees it; and whoever did not stream gets a 503."""
    with running_server(step_s=0.005) as running:
        client = running.client()
        wishes: dict[str, Any] = {"model": MODEL, "messages": running.chat()["messages"], "max_tokens": 400}
        stream = iter(client.chat.completions.create(**wishes, stream=True))
        next(stream)
        whole = RawStream(running.port, CHAT, running.chat(max_tokens=400))
        wait_until(lambda: running.stats()["running"] == 2, 2.0)
        running.executor.broken = True
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "engine_failed"
        answer = whole.read_all()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in answer.lower()


def test_st04_a_cut_connection_raises_even_without_the_frame() -> None:
    """ST-04: what a client sees that does not look into frames."""
    with running_server(step_s=0.005) as running:
        body = running.completion(max_tokens=400, stream=True)
        with (
            httpx.Client(timeout=20) as client,
            client.stream("POST", running.url + COMPLETIONS, json=body) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            running.executor.broken = True
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                list(lines)


def fail_at_fifth(seq_id: int, position: int) -> str | None:
    return "logits were not finite" if position >= 13 + 5 else None


def test_ac04_a_request_that_fails_is_an_error_not_a_finish_reason() -> None:
    """AC-04: streamed and not; the next request is served."""
    with running_server(step_s=0.002, fail=fail_at_fifth) as running:
        client = running.client()
        wishes: dict[str, Any] = {"model": MODEL, "messages": running.chat()["messages"], "max_tokens": 40}
        chunks: list[Any] = []
        with pytest.raises(openai.APIError) as streamed:
            chunks.extend(client.chat.completions.create(**wishes, stream=True))
        assert streamed.value.code == "numerical_error"
        assert chunks
        assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
        with pytest.raises(openai.InternalServerError) as whole:
            client.chat.completions.create(**wishes)
        assert whole.value.code == "numerical_error"
        assert whole.value.response.headers["x-should-retry"] == "false"
        short = client.chat.completions.create(**{**wishes, "max_tokens": 3})
        assert short.choices[0].finish_reason == "length"
        running.wait_idle()
        assert 'tokenmill_request_failure_total{code="numerical_error"} 2.0' in running.get("/metrics").text


def test_ac04_a_deadline_ends_a_stream_with_an_error(server: Running) -> None:
    """AC-04."""
    stream = server.client().chat.completions.create(
        model=MODEL,
        messages=server.chat()["messages"],
        max_tokens=480,
        stream=True,
        extra_body={"timeout_s": 0.3},
    )
    with pytest.raises(openai.APIError) as caught:
        assert all(chunk.choices[0].finish_reason is None for chunk in stream)
    assert caught.value.code == "deadline_exceeded"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_st06_the_usage_chunk(server: Running, path: str) -> None:
    """ST-06."""
    body = {**(server.chat() if path == CHAT else server.completion()), "seed": 3, "max_tokens": 6}
    usage = server.post(path, body).json()["usage"]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = events(server.post(path, {**body, **options}).text)
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == []
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][field] == usage[field]
    assert "timing" in last
    each = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    *chunks, last, done = events(server.post(path, {**body, **each}).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and 0 < counts[0] <= counts[-1] == last["usage"]["completion_tokens"]
    for more in ({"stream": True}, {"stream": True, "stream_options": {"include_usage": False}}):
        *chunks, done = events(server.post(path, {**body, **more}).text)
        assert done == "[DONE]"
        assert all("usage" not in chunk for chunk in chunks)
        assert "timing" in chunks[-1]


def test_st07_a_stream_that_waits_is_kept_open() -> None:
    """ST-07: comments while there is nothing to say, which the official client does not see."""
    with running_server(ServerSettings(port=0, ping_s=0.1), step_s=0.01, max_seqs=1) as running:
        first = RawStream(running.port, COMPLETIONS, running.completion(max_tokens=60))
        wait_until(lambda: running.stats()["running"] == 1, 2.0)
        second = RawStream(running.port, COMPLETIONS, running.completion(max_tokens=3, stream=True))
        data = b""
        while b"[DONE]" not in data:
            data += second.read_some(65536)
        assert data.count(b": ping") >= 2
        first.close()
        second.close()
        running.wait_idle()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_st08_choices_streamed_together(server: Running, path: str) -> None:
    """ST-08: one finish reason each, texts and log-probabilities as in the whole answer."""
    wishes: dict[str, Any] = {"n": 4, "seed": 11, "max_tokens": 12, "logprobs": True if path == CHAT else 2}
    body = {**(server.chat() if path == CHAT else server.completion(echo=True, prompt=["One", "Two 😀"])), **wishes}
    whole = server.post(path, body).json()["choices"]
    *chunks, done = events(server.post(path, {**body, "stream": True}).text)
    assert done == "[DONE]"
    for choice in whole:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in mine if c["finish_reason"] is not None] == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if path == CHAT:
            assert mine[0]["delta"]["role"] == "assistant"
            assert sum("role" in c["delta"] for c in mine) == 1
            assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
            entries = [e for c in mine if c["logprobs"] for e in c["logprobs"]["content"]]
            assert entries == choice["logprobs"]["content"]
            continue
        assert "".join(c["text"] for c in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [v for c in mine if c["logprobs"] for v in c["logprobs"][name]] == values, name


def test_choices_that_end_at_different_times(server: Running) -> None:
    """Each ends where its own stop string comes."""
    body = server.chat(n=4, seed=2, max_tokens=60, stop=["e"])
    whole = server.post(CHAT, body).json()["choices"]
    assert {choice["finish_reason"] for choice in whole} == {"stop"}
    *chunks, _ = events(server.post(CHAT, {**body, "stream": True}).text)
    for choice in whole:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in parts) == choice["message"]["content"]
        assert "e" not in choice["message"]["content"]


def test_errors_before_the_first_token_have_a_status(server: Running) -> None:
    """A stream that never began is an ordinary error."""
    response = server.post(CHAT, server.chat(stream=True, timeout_s=1e-6))
    assert response.status_code == 504
    assert error_of(response)["code"] == "deadline_exceeded"


def test_stream_headers(server: Running) -> None:
    response = server.post(CHAT, server.chat(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-request-id"].startswith("req_")


def test_a_half_read_body_is_no_request(server: Running) -> None:
    """A client that leaves while sending leaves nothing behind."""
    requests = server.stats()["requests"]
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
    time.sleep(0.05)
    assert server.stats()["requests"] == requests


def fail(*arguments: object) -> None:
    raise ZeroDivisionError("secret detail")


def test_a_mistake_of_ours_ends_one_request(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """FT-09, where log-probabilities are formatted: an error frame or a 500, logged; nobody else is hurt."""
    with running_server(step_s=0.005) as running:
        other = RawStream(running.port, COMPLETIONS, running.completion(max_tokens=100, stream=True))
        seen = other.read_some(1)
        monkeypatch.setattr("tokenmill.server.chat.chat_logprobs", fail)
        body = running.chat(max_tokens=40, logprobs=True)
        whole = running.post(CHAT, body)
        assert (whole.status_code, error_of(whole)["code"]) == (500, "server_error")
        streamed = RawStream(running.port, CHAT, {**body, "stream": True}).read_all()
        assert b'"code":"server_error"' in streamed
        assert b"[DONE]" not in streamed
        assert b"secret" not in streamed + whole.content
        assert sum("failed" in record.message for record in caplog.records) == 2
        while b"[DONE]" not in seen:
            seen += other.read_some(65536)
        other.close()
        running.wait_idle()


def test_a_backlog_does_not_hide_that_the_client_left(shared_server: Running) -> None:
    """Frames that are all there at once never wait for anything: the loop must get its turn between them."""
    sent: list[Any] = []
    causes: list[str] = []

    async def frames() -> AsyncGenerator[bytes, None]:
        for _ in range(10_000):
            yield b"data: {}\n\n"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    stream = EventStream(shared_server.app.context, "req_0", frames(), causes.append)
    asyncio.run(stream({"type": "http"}, receive, send))
    assert causes == ["disconnect"]
    assert len(sent) < 10
