"""SK-04: names that are made up anew with every request cost neither series nor memory that stays."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.service import MODEL
from tests.server.support import server_process

MIB = 2**20
LIMIT_BYTES = 64 * MIB

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is Linux's")


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def bodies(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, body) of requests in which everything that a client may name is new."""
    named = {"user": name, "tenant": name, "cache_salt": name, "metadata": {name: name}}
    text = {"prompt": f"{name} went out", "max_tokens": 1, **named}
    return [
        ("POST", "/v1/completions", {"model": MODEL, **text, "stop": [name], "seed": int(name[1:])}),
        ("POST", "/v1/embeddings", {"model": MODEL, "input": name, "tenant": name}),
        ("POST", "/v1/completions", {"model": name, **text}),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "x", name: 1}),
        ("GET", f"/v1/requests/req_{name}", {}),
        ("GET", f"/{name}?{name}={name}", {}),
    ]


def ask(connection: http.client.HTTPConnection, numbers: range) -> None:
    for number in numbers:
        name = f"n{number}"
        headers = {"content-type": "application/json", "x-request-id": name, f"x-{name}": name, "user-agent": name}
        for method, path, body in bodies(name):
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 400, 404), (path, answer.status)


def num_series(url: str) -> int:
    return sum(not line.startswith("#") for line in httpx.get(f"{url}/metrics").text.splitlines())


@pytest.mark.parametrize(("warmup", "count"), [(80, 80), pytest.param(2_000, 20_000, marks=pytest.mark.heavy)])
def test_sk04_names_without_end_cost_neither_series_nor_memory(warmup: int, count: int) -> None:
    """Six requests a name; in the heavy run what is kept of ended requests is full before memory is looked at."""
    with server_process() as (process, url):
        connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=30)
        ask(connection, range(warmup))
        num_series(url)
        series, memory = num_series(url), resident_bytes(process.pid)
        ask(connection, range(warmup, warmup + count))
        assert num_series(url) == series
        assert resident_bytes(process.pid) - memory < LIMIT_BYTES
        connection.close()
