"""What the client itself costs: a server that has every answer ready, asked the same way as the real one.

It runs in the client's own event loop and sends each piece as an event of its own, so that what the client measures
against it is its own overhead, and the server's little on top: an upper bound. Take a latency for the server's only
where it is far above this.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from tokenmill.bench.http import Client
from tokenmill.bench.load import PlannedRequest
from tokenmill.bench.serve import Server, run_load
from tokenmill.perf.metrics import summarize

MAX_REQUESTS = 200
MAX_SECONDS = 10.0
"""Of the load's beginning, what the calibration repeats."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


async def calibrate(server: Server, load: Sequence[PlannedRequest], concurrency: int | None) -> dict[str, Any]:
    """The beginning of ``load`` on the null server, in seconds: the client's share of every latency.

    Returns:
        ``requests``; ``ttft_s`` (after the intended send), ``per_piece_s`` and ``loop_lag_s``, summarised.
    """
    part = [replace(request, give_up_after=None) for request in load[:MAX_REQUESTS] if request.send_s <= MAX_SECONDS]
    async with null_server() as url:
        null = replace(server, client=Client(url))
        run = await run_load(null, part, "", lambda answered, failed: None, concurrency=concurrency)
    timelines = [outcome.timeline() for outcome in run.outcomes if outcome.error is None]
    return {
        "requests": len(timelines),
        "ttft_s": summarize(timeline.ttft_s for timeline in timelines),
        "per_piece_s": summarize(timeline.tpot_s for timeline in timelines if timeline.output_tokens > 1),
        "loop_lag_s": summarize(run.loop_lags_s),
    }


@asynccontextmanager
async def null_server() -> AsyncIterator[str]:
    """A server on a free port of this machine; its address."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        writer.write(HEAD)
        piece = _event({"choices": [{"index": 0, "text": "x", "delta": {"content": "x"}, "finish_reason": None}]})
        for _ in range(body["max_tokens"]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # the next piece is another event, as it is with a real server
        usage = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"]}
        writer.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await writer.drain()
    finally:
        writer.close()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
