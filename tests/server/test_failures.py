"""What fails, and who is told what: over HTTP, with faults at named points.

Cases FT-02, FT-08, FT-09, FT-21, FT-24 (the engine beside the server, and in a process of its own).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.service import CODEC_FOLDER, MODEL
from tests.server.support import (
    ROOT,
    RawStream,
    Running,
    error_of,
    events,
    running_server,
    server_process,
    wait_until,
)
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.engine.faults import Fault, armed
from tokenmill.engine.remote.options import RemoteSettings
from tokenmill.engine.remote.service import RemoteService
from tokenmill.engine.text import TextCodec
from tokenmill.server.app import create_app
from tokenmill.server.serve import EXIT_ENGINE_DIED, Server, address_of, bind
from tokenmill.server.settings import ServerSettings

COMPLETIONS = "/v1/completions"


# ---- one request -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["text.tokenise", "text.detokenise", "engine.add"])
def test_ft09_a_fault_in_one_request_ends_that_request(server: Running, point: str) -> None:
    """FT-09: 500 with OpenAI's body, nothing of what happened inside is told, and the canary beside it is exact."""
    body = server.completion(max_tokens=60, seed=3, ignore_eos=True)
    reference = server.post(COMPLETIONS, body).json()["choices"]
    with ThreadPoolExecutor(1) as pool:
        canary = pool.submit(server.post, COMPLETIONS, body)
        wait_until(lambda: server.stats()["running"] == 1, 5)
        if point == "text.detokenise":
            only = [Fault(point, _fail_for("victim"))]
        else:
            only = [Fault(point, times=1)]
        with armed(*only):
            failed = server.post(COMPLETIONS, server.completion(seed=4, user="victim", prompt="a victim"))
        assert canary.result().json()["choices"] == reference
    assert failed.status_code == 500
    assert error_of(failed)["code"] == "server_error"
    assert "injected" not in failed.text
    server.wait_idle()


def _fail_for(name: str) -> Any:
    """Fails for prompts of few tokens: the canary's has more."""

    def fail(request: Any) -> None:
        if request.seed == 4:
            raise RuntimeError("injected")

    return fail


def test_ft09_a_fault_in_the_middle_of_a_stream_is_an_error_frame(server: Running) -> None:
    with armed(Fault("text.detokenise", after=3, times=1)):
        stream = RawStream(server.port, COMPLETIONS, server.completion(max_tokens=50, stream=True, ignore_eos=True))
        data = stream.read_all()
        stream.close()
    assert b'"error"' in data and b"[DONE]" not in data
    assert not data.endswith(b"0\r\n\r\n"), "a clean end"
    server.wait_idle()


def test_a_listener_that_fails_keeps_nobody_waiting(server: Running) -> None:
    def fail(events: Any) -> None:
        raise RuntimeError("a listener")

    server.service.subscribe(fail)
    try:
        assert server.post(COMPLETIONS, server.completion()).status_code == 200
    finally:
        server.service._listeners.remove(fail)


# ---- the engine --------------------------------------------------------------------------------------------------


def test_ft24_readiness_follows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """FT-24: the scheduler's thread is frozen; not ready before long, live all the while, and ready again after."""
    monkeypatch.setattr("tokenmill.engine.watchdog.SLOW_AFTER_S", 2.0)
    with running_server() as running:
        assert running.get("/health/ready").json()["state"] == "ready"
        with armed(Fault("executor.submit", action="hang", seconds=5.5, times=1)), ThreadPoolExecutor(1) as pool:
            frozen = pool.submit(running.post, COMPLETIONS, running.completion())
            wait_until(lambda: running.get("/health/ready").status_code == 503, 5)
            told = running.get("/health/ready").json()
            assert (told["status"], told["state"]) == ("unavailable", "slow")
            assert told["since"] <= time.time() and "progress" in told["why"]
            assert running.get("/health/live").status_code == 200
            refused = running.post(COMPLETIONS, running.completion())
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert frozen.result().status_code == 200
            wait_until(lambda: running.get("/health/ready").status_code == 200, 5)


def test_ft08_a_hung_step_ends_the_process_and_every_stream_is_told() -> None:
    """FT-08, in one process: stuck, not live; error frames, then the exit code that a supervisor restarts on."""
    with running_server(stuck_after_s=1.0) as running:
        streams = [
            RawStream(running.port, COMPLETIONS, running.completion(max_tokens=400, stream=True, ignore_eos=True))
            for _ in range(3)
        ]
        for stream in streams:
            assert stream.read_some(1)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(running.post, COMPLETIONS, running.completion(max_tokens=400, ignore_eos=True))
            wait_until(lambda: running.stats()["running"] == 4, 5)
            running.executor.step_s = 20.0
            for stream in streams:
                data = stream.read_all()
                assert b"engine_failed" in data and b"[DONE]" not in data
                stream.close()
            lost = whole.result()
        assert (lost.status_code, error_of(lost)["code"]) == (503, "engine_failed")
        assert 1 <= int(lost.headers["retry-after"]) <= 120
        running.thread.join(10)
        running.executor.step_s = 0.0
        assert running.exit_code == EXIT_ENGINE_DIED


# ---- the environment ---------------------------------------------------------------------------------------------


def test_ft21_no_more_descriptors_and_back() -> None:
    """FT-21: more connections than there are descriptors; the server lives, and serves again when they are gone."""
    with server_process() as (process, url), httpx.Client(timeout=20) as client:
        assert client.get(f"{url}/health/live").status_code == 200
        used = len(os.listdir(f"/proc/{process.pid}/fd"))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 8, used + 8))
        port = int(url.rsplit(":", 1)[1])
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        time.sleep(0.3)
        assert client.get(f"{url}/health/live").status_code == 200
        for each in crowd:
            each.close()
        answer = client.post(url + COMPLETIONS, json={"model": MODEL, "prompt": "Once", "max_tokens": 3})
        assert answer.status_code == 200
        wait_until(lambda: httpx.get(f"{url}/health/ready", timeout=20).status_code == 200, 20)
        assert process.poll() is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_ft21_a_log_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tests.server.process"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=full, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert httpx.post(url + COMPLETIONS, json={"prompt": 7}, timeout=20).status_code == 400
            body = {"model": MODEL, "prompt": "Once", "max_tokens": 3}
            assert httpx.post(url + COMPLETIONS, json=body, timeout=20).status_code == 200
        finally:
            process.kill()
            process.communicate(timeout=10)


# ---- an engine in its own process --------------------------------------------------------------------------------


class Isolated:
    """A server whose engine is another process."""

    def __init__(self, url: str, service: RemoteService) -> None:
        self.url, self.service = url, service
        self.port = int(url.rsplit(":", 1)[1])
        self.exit_code: int | None = None

    def kill(self) -> None:
        assert self.service.pid is not None
        os.kill(self.service.pid, signal.SIGKILL)


@contextmanager
def isolated(**options: Any) -> Iterator[Isolated]:
    settings = ServerSettings(port=0)
    sock = bind(settings)
    ready = threading.Event()
    found: list[Any] = []

    async def main() -> None:
        service = await RemoteService.launch(
            (sys.executable, "-m", "tests.engine.remote_child"),
            EngineConfig.from_options(num_blocks=256, max_seqs=16),
            TextCodec.load(CODEC_FOLDER),
            MonotonicClock(),
            model_name=MODEL,
            options=RemoteSettings(**options),
        )
        await service.start()
        server = Server(create_app(service, settings), sock, lambda address: ready.set())
        made = Isolated(address_of(sock), service)
        found[:] = [made, server]
        made.exit_code = await server.run_until_stopped()
        await service.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="isolated")
    with contextlib.chdir(ROOT):
        thread.start()
        assert ready.wait(20)
        try:
            yield found[0]
        finally:
            found[1].handle_exit(signal.SIGTERM, None)
            thread.join(20)
            assert not thread.is_alive()


def stream_of(port: int, seed: int, max_tokens: int) -> RawStream:
    body = {
        "model": MODEL,
        "prompt": "Once",
        "max_tokens": max_tokens,
        "seed": seed,
        "stream": True,
        "ignore_eos": True,
    }
    return RawStream(port, COMPLETIONS, body)


def to_the_end(stream: RawStream, data: bytes = b"") -> bytes:
    """Until the end of a chunked answer, or of the connection."""
    while not data.endswith(b"0\r\n\r\n"):
        part = stream.read_some(65536)
        if not part:
            break
        data += part
    stream.close()
    return data


def texts(data: bytes) -> str:
    body = data.split(b"\r\n\r\n", 1)[1]
    parts, rest = [], body
    while rest:  # chunked
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        parts.append(rest[:count])
        rest = rest[count + 2 :]
    found = events(b"".join(parts).decode())
    assert found[-1] == "[DONE]"
    return "".join(choice["text"] for event in found[:-1] for choice in event["choices"])


def test_ft02_streams_go_on_as_if_nothing_had_happened() -> None:
    """FT-01, FT-02 over HTTP: 16 streams and 16 that wait; the engine is killed; every stream ends well, and right."""
    with isolated() as server, httpx.Client(timeout=30) as client:
        reference = {}
        for seed in (0, 1):
            stream = stream_of(server.port, seed, 100)
            reference[seed] = texts(to_the_end(stream))
        streams = [stream_of(server.port, seed % 2, 100) for seed in range(32)]
        begun = [stream.read_some(1) for stream in streams[:16]]
        server.kill()
        wait_until(lambda: client.get(f"{server.url}/health/ready").status_code == 503, 5)
        assert client.get(f"{server.url}/health/live").status_code == 200
        told = client.get(f"{server.url}/health/ready").json()
        if told["state"] == "restarting":
            refused = client.post(server.url + COMPLETIONS, json={"model": MODEL, "prompt": "a"})
            assert refused.status_code in (200, 503)
        for seed, stream in enumerate(streams):
            assert texts(to_the_end(stream, begun[seed] if seed < 16 else b"")) == reference[seed % 2]
        wait_until(lambda: client.get(f"{server.url}/health/ready").status_code == 200, 30)
        page = client.get(f"{server.url}/metrics").text
        assert "tokenmill_engine_deaths_total 1.0" in page


def test_ft02_with_recovery_off_every_stream_gets_an_error_frame() -> None:
    with isolated(recovery="fail") as server, httpx.Client(timeout=30) as client:
        streams = [stream_of(server.port, seed, 400) for seed in range(8)]
        for stream in streams:  # somebody has seen something of each
            begun = b""
            while b'"text"' not in begun:
                begun += stream.read_some(4096)
        server.kill()
        for stream in streams:
            data = stream.read_all()
            assert b"engine_failed" in data and b"[DONE]" not in data
            stream.close()
        wait_until(lambda: client.get(f"{server.url}/health/ready").status_code == 200, 30)
        answer = client.post(server.url + COMPLETIONS, json={"model": MODEL, "prompt": "Once", "max_tokens": 3})
        assert answer.status_code == 200


def test_a_crash_loop_is_an_end_with_a_code() -> None:
    with isolated(max_deaths=1) as server:
        stream = stream_of(server.port, 0, 400)
        assert stream.read_some(1)
        server.kill()
        assert b"engine_failed" in stream.read_all()
        stream.close()
        wait_until(lambda: server.exit_code is not None, 15)
        assert server.exit_code == EXIT_ENGINE_DIED


def test_health_says_what_it_is(server: Running) -> None:
    told = json.loads(server.get("/health/live").text)
    assert set(told) == {"status", "state", "since", "why"}
