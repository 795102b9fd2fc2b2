"""A server among strangers: SE-02, SE-07, SE-11, SE-13, SE-20, SE-21, SE-22, SE-24, SE-26, OV-10, and descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation
from typing import Any

import httpx
import pytest

from tests.server.service import MODEL
from tests.server.support import (
    LEAKS,
    ROOT,
    RawStream,
    Running,
    error_of,
    raw_request,
    running_server,
    server_process,
    wait_until,
)
from tokenmill.core.errors import Unavailable
from tokenmill.server.held import HeldBytes
from tokenmill.server.settings import ServerSettings
from tokenmill.server.sse import PADDED_BYTES

KEY = "sk-exposed"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def get(port: int, target: str, *fields: str) -> bytes:
    lines = (f"GET {target} HTTP/1.1", *fields, "connection: close", "", "")
    return raw_request(port, "\r\n".join(lines).encode())


# ---- names --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with running_server(ServerSettings(port=0, api_key=KEY)) as running:
        yield running


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/v1/models", ("host: x/health/live?",)),
        ("/v1/models", ("host: a/?x=",)),
        ("/v1/models", ("host: a#",)),
        ("/v1/models", ("host: a@b",)),
        ("/v1/models", ("host: health",)),
        ("http://x/health/live", ("host: x",)),
        ("http://x/v1/models", ("host: x",)),
        ("/v1/models", ("host: x", "x-forwarded-for: 127.0.0.1", "x-forwarded-host: localhost")),
        ("/v1/models", ("host: x", "x-original-url: /health/live", "x-rewrite-url: /health/live")),
        ("/v1/models", ("host: x", "x-http-method-override: GET", "forwarded: for=127.0.0.1;host=localhost")),
        ("/health/live;/../../v1/models", ("host: x",)),
        ("//health/live", ("host: x",)),
        ("/health/live/..;/models", ("host: x",)),
        ("/v1/models?/health/live", ("host: x",)),
        ("/v1/models#/health/live", ("host: x",)),
    ],
)
def test_se02_no_header_and_no_spelling_opens_a_door(guarded: Running, target: str, fields: tuple[str, ...]) -> None:
    """SE-02."""
    assert get(guarded.port, target, *fields)[9:12] in (b"401", b"400")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_se24_a_rebound_name_is_not_answered(server: Running, host: str) -> None:
    """SE-24: a page whose name was given this machine's address gets nothing from a server without a key."""
    answer = get(server.port, "/v1/models", f"host: {host}")
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert b'"unknown_host"' in answer
    assert get(server.port, "/health/live", f"host: {host}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]:8000", "tokenmill", "a.localhost"]
)
def test_se24_a_local_name_is(server: Running, host: str) -> None:
    assert get(server.port, "/v1/models", f"host: {host}").startswith(b"HTTP/1.1 200 ")


def test_se02_names_that_are_allowed() -> None:
    """SE-02: whatever else the settings say."""
    settings = ServerSettings(port=0, allowed_hosts=("api.example", "127.0.0.1"), api_key=KEY)
    with running_server(settings) as running:
        for host, status in {"api.example": 401, "API.example:443": 401, "127.0.0.1": 401, "localhost": 421}.items():
            assert get(running.port, "/v1/models", f"host: {host}")[9:12] == str(status).encode(), host


def test_with_a_key_every_name_is_good(guarded: Running) -> None:
    authorization = f"authorization: Bearer {KEY}"
    assert get(guarded.port, "/v1/models", "host: api.example", authorization).startswith(b"HTTP/1.1 200 ")


def test_se24_origins_get_no_credentials() -> None:
    """SE-24: a wildcard never comes with credentials, and a preflight tells nothing to others."""
    with running_server(ServerSettings(port=0, cors_origins=("*",))) as running:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        response = running.http.options(running.url + CHAT, headers=asked)
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
    with running_server(ServerSettings(port=0, cors_origins=("https://app.example",))) as running:
        response = running.http.options(running.url + CHAT, headers=asked)
        assert response.status_code == 400
        assert "access-control-allow-origin" not in response.headers


def test_se24_there_is_no_route_that_administers(server: Running) -> None:
    """SE-24: nothing loads, unloads, profiles, resets or shuts down over HTTP."""
    words = re.compile(r"load|sleep|wake|reset|profile|shutdown|admin|config|exec|restart|cache")
    paths = [path for path in server.get("/openapi.json").json()["paths"] if words.search(path)]
    assert not paths


# ---- sockets ------------------------------------------------------------------------------------------


def listeners(pid: int) -> set[int]:
    """Ports that a process listens on, over TCP of both kinds."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


@contextlib.contextmanager
def python(*arguments: str, **more: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``python ARGUMENTS``, and the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="listening sockets are read from Linux's /proc")
def test_se07_one_socket_listens() -> None:
    """SE-07: the port that was asked for and no other, on the address that was asked for."""
    with python("-m", "tests.server.process") as (process, url):
        port = int(url.rsplit(":", 1)[1])
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert listeners(process.pid) == {port}
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), 2).close()


# ---- what is never fetched ----------------------------------------------------------------------------

INSIDE = [
    "http://127.0.0.1:{port}/x",
    "http://127.1:{port}/x",
    "http://2130706433:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://localhost:{port}/x",
    "http://user@127.0.0.1:{port}/x",
    "http://example.org\\@127.0.0.1:{port}/x",
    "http://169.254.169.254/latest/meta-data/",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
]


def test_se13_no_address_is_ever_fetched(server: Running) -> None:
    """SE-13: whatever field holds it, it is refused by name or taken as text; nobody calls."""
    calls: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as sink:
        sink.settimeout(0.01)
        for form in INSIDE:
            url = form.format(port=sink.getsockname()[1])
            parts = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "input_image", "image_url": url},
                {"type": "file", "file": {"file_data": url}},
                {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
            ]
            for part in parts:
                response = server.post(CHAT, server.chat(messages=[{"role": "user", "content": [part]}]))
                assert response.status_code == 400
                assert (error_of(response)["param"] or "").startswith("messages[0].content[0]"), response.text
            for extra in ({"webhook": url}, {"url": url}, {"tools": [{"type": "mcp", "server_url": url}]}):
                assert server.post(CHAT, server.chat(**extra)).status_code == 400
            schema = {"name": "n", "schema": {"$ref": url}}
            form_of = {"type": "json_schema", "json_schema": schema}
            assert server.post(CHAT, server.chat(response_format=form_of)).status_code == 400
            with contextlib.suppress(TimeoutError):
                calls.append(sink.accept())
    assert not calls


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages", "tools", "add_generation_prompt"])
def test_se11_templates_do_not_come_with_requests(server: Running, name: str) -> None:
    """SE-11: neither as a field nor by way of the template's variables."""
    template = "{{ ''.__class__ }}"
    if name == "chat_template":
        error = error_of(server.post(CHAT, server.chat(chat_template=template)))
        assert error["param"] == "chat_template"
        for path in (COMPLETIONS, "/tokenize", "/v1/embeddings"):
            if path in server.get("/openapi.json").json()["paths"]:
                body = {"model": MODEL, "prompt": "a", "input": "a", "chat_template": template}
                assert server.post(path, body).status_code == 400
    response = server.post(CHAT, server.chat(chat_template_kwargs={name: template}))
    assert response.status_code == 400, response.text
    assert "__class__" not in response.text


# ---- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "\x1b[31mred\x07\r\nSet-Cookie: a=b"},
        {"model": "m" * 500},
        {"\x1b]0;title\x07": 1},
        {"stop": ["\u202e" * 5000]},
        {"messages": [{"role": "\x00\x1b[2J", "content": "a"}]},
        {"metadata": {"\x9b31m": 5}},
        {"tools": [{"type": "function", "function": {"name": "../../etc/passwd\x00"}}]},
        {"response_format": {"type": "\x1b[0m"}},
        {"logit_bias": {"\x7f": 1}},
    ],
    ids=range(9),
)
def test_se20_errors_show_nothing_that_they_should_not(server: Running, wrong: dict[str, Any]) -> None:
    """SE-20: no control character of a client's comes back, nothing of the inside is told, and nothing is long."""
    response = server.post(CHAT, server.chat(**wrong))
    assert 400 <= response.status_code < 500
    error = error_of(response)
    for text in (error["message"], error["param"] or ""):
        assert text.isprintable(), text
        assert len(text) <= 2100
        assert not LEAKS.search(text), text
    assert "set-cookie" not in response.headers


# ---- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_se21_padded_streams_do_not_tell_the_length_of_tokens(server: Running, path: str) -> None:
    """SE-21: with padding, sizes and lengths have nothing in common; without it, everything."""
    body = (
        server.chat(max_tokens=200, ignore_eos=True)
        if path == CHAT
        else server.completion(max_tokens=200, ignore_eos=True)
    )

    def measured(pad: bool) -> tuple[list[float], list[float]]:
        options = {"stream": True, "stream_options": {"include_obfuscation": pad}}
        frames = server.post(path, {**body, **options}).text.split("\n\n")
        sizes, lengths = [], []
        for event in frames:
            data = event.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            chunk = json.loads(data)
            assert ("obfuscation" in chunk) <= pad
            choice = chunk["choices"][0]
            text = choice.get("text") or choice.get("delta", {}).get("content")
            if text and choice["finish_reason"] is None:
                sizes.append(float(len(event.encode())))
                lengths.append(float(len(text)))
                assert ("obfuscation" in chunk) == pad
        return sizes, lengths

    sizes, lengths = measured(pad=False)
    assert len(set(lengths)) > 3
    assert correlation(sizes, lengths) > 0.5
    sizes, lengths = measured(pad=True)
    assert len(set(lengths)) > 3
    assert max(lengths) < PADDED_BYTES / 2
    assert len(set(sizes)) == 1 or abs(correlation(sizes, lengths)) < 0.05


# ---- python -OO ---------------------------------------------------------------------------------------


def test_se22_the_same_without_assertions() -> None:
    """SE-22: ``python -OO`` removes assertions and docstrings; verdicts do not change."""
    with python("-OO", "-m", "tests.server.process", "--api-key", KEY) as (process, url):
        port = int(url.rsplit(":", 1)[1])
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as http:
            chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            assert http.post(CHAT, json=chat).json()["usage"]["completion_tokens"] == 3
            stream = http.post(CHAT, json={**chat, "stream": True}).text
            assert stream.endswith("data: [DONE]\n\n")
            assert set(http.get("/openapi.json").json()["paths"]) >= {CHAT, COMPLETIONS}
            for wrong in (
                {"n": 0},
                {"temperature": 9},
                {"x": 1},
                {"messages": []},
                {"logit_bias": {"a": 1}},
                {"stop": [""]},
            ):
                assert http.post(CHAT, json={**chat, **wrong}).status_code == 400, wrong
            for body in (b"", b"{", b"[]", b'{"a":1,"a":2}', b"[" * 100_000):
                assert http.post(CHAT, content=body, headers={"content-type": "application/json"}).status_code == 400
            assert http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
            too_long = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "a " * 5000})
            assert too_long.json()["error"]["code"] == "context_length_exceeded"
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        smuggled = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"
        assert raw_request(port, smuggled).startswith(b"HTTP/1.1 400 ")
        assert process.poll() is None


# ---- memory and descriptors ---------------------------------------------------------------------------


def test_bytes_are_held_until_they_are_given_back() -> None:
    held = HeldBytes(100)
    with held.hold() as one:
        one.take(60)
        with held.hold() as other:
            other.take(40)
            with pytest.raises(Unavailable) as caught:
                one.take(1)
            assert caught.value.retry_after_s is not None
        assert held.num_bytes == 60
        one.take(40)
    assert held.num_bytes == 0


def test_ov10_bodies_beyond_the_bound_are_refused_while_they_are_small() -> None:
    """OV-10: with bodies held by others, one more gets 503 and Retry-After before it is read; then room again."""
    with running_server(ServerSettings(port=0, max_held_bytes=300_000)) as running, contextlib.ExitStack() as stack:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += b"content-length: 140000\r\n\r\n"
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 10))
            sock.sendall(head + b"{" + b" " * 130_000)
        wait_until(lambda: running.app.context.held.num_bytes > 200_000, 10)
        started_s = time.monotonic()
        response = running.post(COMPLETIONS, b" " * 140_000)
        assert response.status_code == 503
        assert error_of(response)["code"] == "server_overloaded"
        assert int(response.headers["retry-after"]) >= 1
        assert time.monotonic() - started_s < 5
        assert running.post(COMPLETIONS, running.completion()).status_code == 200
        stack.close()
        wait_until(lambda: running.app.context.held.num_bytes == 0, 10)


def test_ov10_a_server_with_little_memory_refuses_and_lives() -> None:
    """OV-10: address space for 300 MB more than it has, and 100 requests of a megabyte: errors, no end."""
    with python("-m", "tests.server.process", "--max-held-bytes", str(2**26)) as (process, url):
        status = Path(f"/proc/{process.pid}/status").read_text()
        size_kb = int(re.findall(r"VmSize:\s+(\d+)", status)[0])
        limit = size_kb * 1024 + 300 * 2**20
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        body = json.dumps({"model": MODEL, "prompt": "word " * 200_000}).encode()
        statuses: list[int] = []

        def ask() -> None:
            with httpx.Client(timeout=60) as http:
                for _ in range(5):
                    with contextlib.suppress(httpx.TransportError):
                        headers = {"content-type": "application/json"}
                        statuses.append(http.post(url + COMPLETIONS, content=body, headers=headers).status_code)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(statuses) > 70
        assert set(statuses) <= {400, 503}
        small = {"model": MODEL, "prompt": "a", "max_tokens": 2}
        assert httpx.post(url + COMPLETIONS, json=small).status_code == 200
        assert process.poll() is None


def test_a_body_of_many_values_is_refused_unparsed(server: Running) -> None:
    """Twenty times its bytes, were it parsed."""
    body = b'{"model": "test/model", "prompt": [' + b"[]," * 2_500_000 + b"[]]}"
    response = server.post(COMPLETIONS, body)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    descriptors: int
    threads: int
    resident_kb: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = Path(f"/proc/{pid}/status").read_text()
        threads, resident = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("Threads", "VmRSS"))
        return cls(len(os.listdir(f"/proc/{pid}/fd")), threads, resident)


def storm(port: int, http: httpx.Client) -> None:
    """Streams that are cut off, nonsense, connections without a word, requests that are refused."""
    body = {"model": MODEL, "prompt": "a", "stream": True, "max_tokens": 300, "ignore_eos": True}
    for _ in range(20):
        raw = RawStream(port, COMPLETIONS, body)
        raw.read_some()
        raw.close()
    for data in (b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 1000, b"POST / HTTP/1.1\r\nhost: x\r\n x\r\n\r\n"):
        for _ in range(5):
            with contextlib.suppress(ConnectionError):
                raw_request(port, data)
    for _ in range(100):
        socket.create_connection(("127.0.0.1", port), 5).close()
    for _ in range(10):
        http.post(COMPLETIONS, json={"model": MODEL, "prompt": "a " * 4000})
        http.post(COMPLETIONS, content=b"x" * 70_000)
        http.get("/nothing/here")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in Linux's /proc")
def test_descriptors_threads_and_memory_are_flat_after_storms() -> None:
    """INV: whatever clients did, nothing is left of it."""
    with server_process(step_s=0.001) as (process, url), httpx.Client(base_url=url) as http:
        port = int(url.rsplit(":", 1)[1])

        def is_idle() -> bool:
            running = re.findall(r"^tokenmill_num_requests_running\S* (\S+)", http.get("/metrics").text, re.MULTILINE)
            return sum(map(float, running)) == 0

        for _ in range(2):
            storm(port, http)
        wait_until(is_idle, 10)
        before = Footprint.of(process.pid)
        for _ in range(4):
            storm(port, http)
        wait_until(is_idle, 10)
        wait_until(lambda: Footprint.of(process.pid).descriptors <= before.descriptors + 2, 10)
        after = Footprint.of(process.pid)
        assert after.threads <= before.threads + 1
        assert after.resident_kb - before.resident_kb < 16 * 1024, (before, after)


# ---- read-only ----------------------------------------------------------------------------------------


def test_se26_the_package_can_be_read_only(tmp_path: Path) -> None:
    """SE-26: nothing is written to HOME, to the working directory or the package; SE-06: nothing unpickled or run."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code = WATCHED.format(allowed=repr(str(tmp_path / "tmp")))
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(home / "cache")}
    with python("-c", code, env=environment) as (process, url):
        assert url.startswith("http://"), process.stderr and process.stderr.read()
        small = {"model": MODEL, "prompt": "a", "max_tokens": 2}
        assert httpx.post(url + COMPLETIONS, json=small).status_code == 200
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": True}
        assert "[DONE]" in httpx.post(url + CHAT, json=chat).text
        assert httpx.post(url + CHAT, json={**chat, "n": 0}).status_code == 400
        assert process.poll() is None
    assert not list(home.iterdir())


WATCHED = """
import os, runpy, sys

def refuse(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen"):
        print(event, flush=True)
        os._exit(9)
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = os.path.abspath(arguments[0])
        if not path.startswith(({allowed}, "/dev/")):
            print("wrote", path, flush=True)
            os._exit(9)

sys.addaudithook(refuse)
sys.argv = ["process"]
runpy.run_module("tests.server.process", run_name="__main__")
"""
