"""A real server for tests: real HTTP, real service, real scheduler and pool; only the model is a fake.

The fake executor (``tokenmill/testing``) draws tokens from hashes and checks every plan; here it also takes a
little real time per step, so that there is something to interrupt. Nothing but the loopback interface is used.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.server.service import MODEL, TimedExecutor, make_service
from tokenmill.engine.async_service import EngineService
from tokenmill.server.app import create_app
from tokenmill.server.guard import Guard
from tokenmill.server.serve import Server, address_of, bind
from tokenmill.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]

SMALL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    "/v1/completions": {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4},
    "/v1/responses": {"model": MODEL, "input": "Hi", "max_output_tokens": 4},
    "/v1/responses/input_tokens": {"input": "Hi"},
    "/v1/embeddings": {"model": MODEL, "input": "Hi"},
    "/v1/batches": {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [300]},
}
"""A small body for every route that takes one."""


@dataclass
class Running:
    """A server that answers on ``url``."""

    url: str
    service: EngineService
    executor: TimedExecutor
    server: Server
    app: Guard
    thread: threading.Thread
    exit_code: int | None = None
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))
    usual_client: openai.OpenAI | None = None

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """POST ``body`` as JSON; bytes go as they are, marked as JSON."""
        if isinstance(body, bytes):
            more = {"content": body, "headers": {"content-type": "application/json"}, **more}
        else:
            more = {"json": body, **more}
        return self.http.post(self.url + path, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(self.url + path, **more)

    def chat(self, **more: Any) -> dict[str, Any]:
        """A small chat request's body."""
        return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **more}

    def completion(self, **more: Any) -> dict[str, Any]:
        """A small completion request's body."""
        return {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4, **more}

    def client(self, **more: Any) -> openai.OpenAI:
        """The same one whenever nothing special is wished for; closed with the server."""
        if more or self.usual_client is None or self.usual_client.is_closed():
            client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30, **more)
            if more:
                return client
            self.usual_client = client
        return self.usual_client

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def wait_idle(self, within_s: float = 2.0) -> float:
        """Wait until every block is back, and check the invariants; how long it took."""
        started_s = time.monotonic()
        wait_until(lambda: self.stats()["running"] == 0 and self.stats()["waiting"] == 0, within_s)
        took_s = time.monotonic() - started_s
        stats = self.stats()
        assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"], stats
        return took_s

    def stats(self) -> dict[str, Any]:
        return self.service.stats()

    def metric(self, name: str) -> float:
        """The sum over the samples of one metric."""
        lines = self.get("/metrics").text.splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def stop(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)


def wait_until(done: Callable[[], bool], within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)


@contextmanager
def running_server(settings: ServerSettings | None = None, **options: Any) -> Iterator[Running]:
    """Serve in a thread of this process; ``options`` as ``make_service``."""
    settings = settings or ServerSettings(port=0)
    service, executor = make_service(**options)
    sock = bind(settings)
    ready = threading.Event()
    app = create_app(service, settings)
    server = Server(app, sock, lambda address: ready.set())

    async def main() -> None:
        await service.start()
        running.exit_code = await server.run_until_stopped()
        await service.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="test-server")
    running = Running(address_of(sock), service, executor, server, app, thread)
    thread.start()
    try:
        assert ready.wait(10)
        yield running
    finally:
        running.http.close()
        if running.usual_client is not None:
            running.usual_client.close()
        running.stop()
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def server_process(**options: float | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own and its address; ``options`` as ``tests/server/process.py``."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "tests.server.process", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


class RawStream:
    """A streaming request over a bare socket, for clients that do not behave."""

    def __init__(self, port: int, path: str, body: dict[str, Any], *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + data)

    def read_some(self, num_bytes: int = 1) -> bytes:
        return self.socket.recv(num_bytes)

    def read_all(self) -> bytes:
        """Until the other side closes; an abrupt end counts as one."""
        parts = []
        while True:
            try:
                part = self.socket.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self.socket.close()


def raw_request(port: int, data: bytes, *, timeout_s: float = 10) -> bytes:
    """Send bytes, read until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=timeout_s)) as sock:
        sock.sendall(data)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        return b"".join(parts)


def events(text: str) -> list[Any]:
    """The data of each server-sent event; comments are left out, ``[DONE]`` stays a string."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), blocks
    return [data if data == "[DONE]" else json.loads(data) for data in (b.removeprefix("data: ") for b in blocks)]


LEAKS = re.compile(
    r"Traceback|File \"|/(?:home|usr|work|root|tmp|var|opt)/|\bat 0x[0-9a-f]|\.py\b|tokenmill\.\w+\.\w+|site-packages"
)
"""What an error must not tell of the inside (SE-20)."""


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, after checking that its body is exactly OpenAI's."""
    assert response.headers["content-type"] == "application/json", response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert not LEAKS.search(response.text), response.text
    assert (error["message"] + (error["param"] or "")).isprintable(), response.text
    assert response.headers["x-request-id"].startswith("req_")
    return error
