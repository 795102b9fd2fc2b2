"""Batches and uploads through ``kill -9``: FT-26. What dies is a real server process, at moments it does not choose."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.service import MODEL
from tests.server.support import server_process, wait_until
from tests.server.test_batches import COMPLETIONS, LONG, line

NUM_LINES = 1000
STEP_S = 0.005
WISH = {"model": MODEL, "max_tokens": 4, "ignore_eos": True}
OVER = ("completed", "failed", "expired", "cancelled")


def wishes() -> list[dict[str, Any]]:
    """One in fifty is answered with an error."""
    return [
        line(f"id {i}", {**WISH, "prompt": f"Once {i}", "seed": i, **({} if i % 50 else {"top_p": 3})})
        for i in range(NUM_LINES)
    ]


@contextmanager
def server_on(folder: Path, **options: float) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """A server process over ``folder``, and a client of it."""
    with (
        server_process(store_dir=folder, **options) as (process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client,
    ):
        yield process, client


def done(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed + counts.failed


def wait_for(client: openai.OpenAI, batch_id: str, number: int) -> int:
    wait_until(lambda: done(client, batch_id) >= number, LONG)
    return done(client, batch_id)


def partial(folder: Path) -> list[str]:
    return [path.name for path in (folder / "partial").iterdir()]


@pytest.mark.slow
def test_ft26_every_line_once_through_kills(tmp_path: Path) -> None:
    """FT-26: killed while lines are checked, at 30 %, at random moments, and at 99 %; then left to end."""
    folder, lots = tmp_path / "store", random.Random(26)
    moments = [0.0, 0.3, lots.uniform(0.3, 0.6), lots.uniform(0.6, 0.99), 0.99]
    batch_id, seen = "", 0
    for moment in moments:
        with server_on(folder, step_s=STEP_S) as (process, client):
            if not batch_id:
                file = client.files.create(file="\n".join(map(json.dumps, wishes())).encode(), purpose="batch")
                batch = client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
                batch_id = batch.id
            # What was told to be done stays done. (While the lines of a restarted batch are read, it tells less.)
            seen = wait_for(client, batch_id, max(seen, round(moment * NUM_LINES)))
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    with server_on(folder, step_s=STEP_S) as (_, client):
        wait_until(lambda: client.batches.retrieve(batch_id).status in OVER, LONG)
        batch = client.batches.retrieve(batch_id)
        assert batch.status == "completed"
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (NUM_LINES, NUM_LINES * 49 // 50, NUM_LINES // 50)
        files = [client.files.content(str(name)).text for name in (batch.output_file_id, batch.error_file_id)]
        rows = [[json.loads(text) for text in file.splitlines()] for file in files]
        ids = [row["custom_id"] for file in rows for row in file]
        assert len(ids) == NUM_LINES
        assert set(ids) == {wish["custom_id"] for wish in wishes()}
        assert {row["custom_id"] for row in rows[1]} == {f"id {i}" for i in range(0, NUM_LINES, 50)}
        total = sum(row["response"]["body"]["usage"]["total_tokens"] for row in rows[0])
        assert batch.usage is not None and batch.usage.total_tokens == total
        for row in lots.sample(rows[0], 10):  # whoever answered it, before or after a kill
            number = int(row["custom_id"].split()[1])
            alone = client.completions.create(prompt=f"Once {number}", seed=number, **ask())
            assert row["response"]["body"]["choices"][0]["text"] == alone.choices[0].text
        assert len(list(client.files.list())) == 3
        assert partial(folder) == []


def ask() -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 4, "extra_body": {"ignore_eos": True}}


def test_ft26_killed_during_an_upload(tmp_path: Path) -> None:
    """FT-26: no part of it is ever seen, and the next start clears it away."""
    folder = tmp_path / "store"
    with server_on(folder) as (process, client):
        head = (
            "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
            "content-length: 9000000\r\n\r\n"
            '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        with socket.create_connection(("127.0.0.1", client.base_url.port or 80), timeout=10) as sock:
            sock.sendall(head.encode() + b"x" * 5_000_000)
            wait_until(lambda: any(path.stat().st_size > 2**20 for path in (folder / "partial").iterdir()), LONG)
            assert list(client.files.list()) == []
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    assert len(partial(folder)) == 1
    with server_on(folder) as (_, client):
        assert list(client.files.list()) == []
        assert partial(folder) == []
        assert list((folder / "files").iterdir()) == []


def test_a_signal_ends_the_process_and_not_the_batch(tmp_path: Path) -> None:
    """SIGTERM waits for no line: what was in flight is run by the next process."""
    folder = tmp_path / "store"
    with server_on(folder, step_s=0.05) as (process, client):
        file = client.files.create(file="\n".join(map(json.dumps, wishes()[:200])).encode(), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
        wait_until(lambda: done(client, batch.id) > 0, LONG)
        process.send_signal(signal.SIGTERM)
        started_s = time.monotonic()
        assert process.wait(LONG) == 0
        assert time.monotonic() - started_s < 10
    with server_on(folder) as (_, client):
        wait_until(lambda: client.batches.retrieve(batch.id).status in OVER, LONG)
        ended = client.batches.retrieve(batch.id)
        assert ended.status == "completed"
        assert done(client, batch.id) == 200
