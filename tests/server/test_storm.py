"""ST-01: rounds of many streams, each closed at a moment of its own; at the full size twenty rounds of a thousand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics

import pytest

from tests.server.support import Running, running_server, wait_until

MOMENTS = ("before headers", "queued or in prefill", "in decode", "in decode of four", "after the last token")
MAX_TOKENS = 24


def request_of(server: Running, moment: str, draw: random.Random) -> bytes:
    """A stream's request: with a long prompt to be caught in prefill, with a short answer to be seen to its end."""
    wishes = {
        "prompt": "word " * (draw.randint(200, 400) if moment == "queued or in prefill" else draw.randint(1, 20)),
        "n": 4 if moment == "in decode of four" else 1,
        "max_tokens": 2 if moment == "after the last token" else MAX_TOKENS,
    }
    body = json.dumps(server.completion(stream=True, ignore_eos=True, **wishes)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def stream_and_leave(server: Running, moment: str, draw: random.Random) -> bool:
    """Open a stream and close it at ``moment``; whether that moment was still to be had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request_of(server, moment, draw))
        await writer.drain()
        if moment == "before headers":
            return True
        if moment == "queued or in prefill":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.readuntil(b"data: "), draw.uniform(0.01, 0.2))
                return False
            return True
        wanted = 1 if moment == "after the last token" else draw.randint(1, MAX_TOKENS // 2)
        mark = b"[DONE]" if moment == "after the last token" else b"data: "
        for _ in range(wanted):
            await asyncio.wait_for(reader.readuntil(mark), 60)
        return True
    finally:
        writer.transport.abort()  # whatever is unread, as when a process dies


@pytest.mark.parametrize(("num_rounds", "num_streams"), [(3, 150), pytest.param(20, 1000, marks=pytest.mark.heavy)])
def test_st01_a_storm_of_disconnects(num_rounds: int, num_streams: int) -> None:
    """ST-01: after each round every block is back, no connection is left, and the next round is served."""
    draw = random.Random(1)
    idle_after_s = []
    caught = dict.fromkeys(MOMENTS, 0)

    async def storm(server: Running) -> None:
        moments = [draw.choice(MOMENTS) for _ in range(num_streams)]
        came = await asyncio.gather(*(stream_and_leave(server, moment, draw) for moment in moments))
        for moment, hit in zip(moments, came, strict=True):
            caught[moment] += hit

    with running_server(step_s=0.002, max_step_tokens=128, num_blocks=2048) as server:
        for _ in range(num_rounds):
            asyncio.run(storm(server))
            idle_after_s.append(server.wait_idle(5.0))
            assert server.post("/v1/completions", server.completion()).status_code == 200
        wait_until(lambda: len(server.server.server_state.connections) <= 1, 5.0)  # the test's own client keeps one
    assert min(caught.values()) > num_rounds * num_streams / 50, caught
    assert statistics.median(idle_after_s) < 0.5, idle_after_s
    assert max(idle_after_s) < 2.0, "generous: clients and server share two cores"
