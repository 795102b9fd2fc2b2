"""``tokenmill serve --isolate`` with a real model: two processes, killed one at a time.

Cases CC-06, FT-02, FT-04, FT-10, FT-14.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import call, process
from tests.cli.test_serve import free_port

MODEL = ("story-draft", "--num-blocks", "64", "--max-context", "512", "--num-threads", "1", "--ceilings", "none")
MAX_RESTART_S = 30.0


def post(url: str, **body: Any) -> Any:
    data = json.dumps({"model": "story-draft", "prompt": "Once upon a time", "ignore_eos": True, **body}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def state(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=10) as answer:
            return str(json.loads(answer.read())["state"])
    except urllib.error.HTTPError as error:
        return str(json.loads(error.read())["state"])


def sockets_that_listen(pid: int) -> list[str]:
    """Ports, in hexadecimal, on which this process listens over TCP."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = [
        line.split()
        for kind in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    return [row[1].rpartition(":")[2] for row in rows if row[3] == "0A" and row[9] in inodes]


@pytest.mark.slow
def test_the_engine_is_killed_and_the_answer_is_as_if_nothing_had_happened() -> None:
    """CC-06, FT-02, FT-04: answers under way, one of them by a grammar, and one after it equal those of the first
    engine; ready within 30 s; exit 0."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process("serve", *MODEL, "--isolate", "--port", port) as started:
        started.wait_for(f"ready on {url}")
        (engine,) = started.children
        wish = {"max_tokens": 400, "seed": 11, "temperature": 1.0, "logprobs": 1}
        reference = post(url, **wish)["choices"]
        strict = {"max_tokens": 300, "seed": 12, "guided_regex": "([a-z]{1,7} ){400}", "ignore_eos": False}
        structured = post(url, **strict)["choices"]
        found: dict[str, Any] = {}
        asking = [
            threading.Thread(target=lambda: found.update(plain=post(url, **wish))),
            threading.Thread(target=lambda: found.update(structured=post(url, **strict))),
        ]
        for each in asking:
            each.start()
        time.sleep(0.1)
        os.kill(int(engine), signal.SIGKILL)
        began_s = time.monotonic()
        while state(url) == "ready" and time.monotonic() - began_s < 5:
            time.sleep(0.005)
        assert state(url) == "restarting"
        while state(url) != "ready":
            assert time.monotonic() - began_s < MAX_RESTART_S
            time.sleep(0.05)
        for each in asking:
            each.join(60)
        assert found["plain"]["choices"] == reference
        assert found["structured"]["choices"] == structured
        assert post(url, **wish)["choices"] == reference
        assert started.children and started.children != [engine]
        started.signal(signal.SIGTERM)
        assert started.wait(30) == 0
        assert started.children == []


@pytest.mark.slow
def test_ft10_ft14_the_server_is_killed_and_its_engine_goes_with_it() -> None:
    port = free_port()
    with process("serve", *MODEL, "--isolate", "--port", port) as started:
        started.wait_for(f"ready on http://127.0.0.1:{port}")
        (engine,) = started.children
        assert sockets_that_listen(int(engine)) == [], "only the API's address is listened on"
        assert sockets_that_listen(started.popen.pid) == [f"{port:04X}"]
        started.signal(signal.SIGKILL)
        began_s = time.monotonic()
        while Path(f"/proc/{engine}").exists() and "zombie" not in Path(f"/proc/{engine}/status").read_text():
            assert time.monotonic() - began_s < 5, "the engine outlived the server"
            time.sleep(0.05)


def test_bad_starts_are_told_in_one_line(capsys: Any) -> None:
    done = call(capsys, "serve", "no/such/folder", "--isolate", "--port", free_port())
    assert done.code == 1 and done.err.strip().splitlines()[-1].startswith("error: ")
    done = call(capsys, "serve", "story-draft", "--stuck-timeout", "0", "--port", free_port())
    assert done.code == 1 and "stuck_timeout" in done.err
