"""Clients that misbehave, each in one way; every one is over after some seconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tokenmill.bench.soak.bad import CORPUS, refuse
from tokenmill.bench.soak.session import Session
from tokenmill.bench.soak.wire import Connection, Cut

SMALL_BUFFER = 4096
FLOOD_AGAIN_S = 1.0
"""After a refusal."""
LOST = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, Cut, TimeoutError)


async def disconnect(session: Session) -> None:
    """Ask for much, and be gone at a random moment: within the request, before the answer, or within it."""
    rng = session.rng
    path, body = _much(session)
    request = session.address.request("POST", path, json.dumps(body).encode(), key=session.key)
    part = rng.random()
    connection = None
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(3 * rng.random()):
            connection = await Connection.open(session.address)
            if part < 0.2:
                connection.writer.write(request[: rng.randrange(1, len(request))])
                await asyncio.sleep(3)
            elif part < 0.5:
                connection.writer.write(request)
                await asyncio.sleep(3)
            else:
                connection.writer.write(request)
                await connection.reader.readexactly(rng.randint(1, 4000))
    if connection is not None:
        if rng.random() < 0.5:
            connection.drop()
        else:
            connection.close()
    session.record.count("disconnect", "within the request" if part < 0.2 else "before or within the answer")


async def read_slowly(session: Session) -> None:
    """Take a stream in small sips; it must be whole, unless the server gave up waiting or nobody could be served."""
    body = {"model": session.model, "messages": [{"role": "user", "content": session.words(2, 9)}], "max_tokens": 60}
    body |= {"stream": True, "logprobs": True, "top_logprobs": 5, "temperature": 1}
    headers = {"Connection": "close"}
    request = session.address.request(
        "POST", "/v1/chat/completions", json.dumps(body).encode(), key=session.key, headers=headers
    )
    data, connection = b"", None
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(30):
            connection = await Connection.open(session.address, receive_bytes=SMALL_BUFFER)
            connection.writer.write(request)
            while piece := await connection.reader.read(512):
                data += piece
                await asyncio.sleep(0.02)
    if connection is not None:
        connection.drop()
    if b"data: [DONE]" in data:
        session.record.count("slow reader", "whole")
    else:
        session.record.count("slow reader", data[9:12].decode("latin-1") or "cut off")


async def send_slowly(session: Session) -> None:
    """A request byte by byte, that then stops: the server must end it, with 408 or without a word."""
    body = json.dumps({"model": session.model, "prompt": "x", "max_tokens": 1}).encode()
    request = session.address.request("POST", "/v1/completions", body, key=session.key)
    upto = session.rng.choice((20, len(request) - len(body) // 2))
    connection, data = None, b""
    try:
        async with asyncio.timeout(40):
            connection = await Connection.open(session.address)
            for at in range(0, upto, 16):
                connection.writer.write(request[at : min(at + 16, upto)])
                await asyncio.sleep(0.02)
            data = await connection.reader.read(-1)
        session.record.count("slow sender", data[9:12].decode("latin-1") or "closed")
    except TimeoutError:
        session.record.breach("errors", "a request that never came was never given up")
    except LOST:
        session.record.count("slow sender", "closed")
    finally:
        if connection is not None:
            connection.drop()


async def be_bad(session: Session) -> None:
    """Something of the corpus."""
    for bad in session.rng.sample(CORPUS, 4):
        await refuse(session, bad)


async def hurry(session: Session) -> None:
    """A request with a deadline that may pass."""
    body = {"model": session.model, "prompt": session.words(1, 40), "max_tokens": 100}
    await session.ask("deadline", "POST", "/v1/completions", body | {"timeout_s": session.rng.choice((0.05, 0.5, 5))})


async def flood(session: Session, clients: int, end_s: float) -> None:
    """Many more at one time than the server takes: each is answered or refused, at once and by the contract."""

    async def one() -> None:
        while session.record.now_s < end_s:
            body = {"model": session.model, "prompt": session.words(1, 60), "max_tokens": session.rng.randint(8, 32)}
            answer = await session.ask("flood", "POST", "/v1/completions", body)
            if answer is None:
                await asyncio.sleep(FLOOD_AGAIN_S)

    await asyncio.gather(*(one() for _ in range(clients)))


MISDEEDS: tuple[tuple[Callable[[Session], Awaitable[None]], int], ...] = (
    (disconnect, 8),
    (be_bad, 4),
    (read_slowly, 2),
    (send_slowly, 1),
    (hurry, 2),
)
"""With how often each comes."""


def _much(session: Session) -> tuple[str, dict[str, Any]]:
    rng, text = session.rng, session.words(5, 150)
    stream = rng.random() < 0.7
    chat = {"model": session.model, "messages": [{"role": "user", "content": text}], "max_tokens": 200}
    form = {"type": "json_object"}
    return rng.choice(
        (
            ("/v1/chat/completions", chat | {"stream": stream, "n": rng.randint(1, 3)}),
            ("/v1/chat/completions", chat | {"stream": stream, "response_format": form}),
            ("/v1/completions", {"model": session.model, "prompt": text, "max_tokens": 200, "stream": stream}),
            ("/v1/responses", {"model": session.model, "input": text, "max_output_tokens": 200, "stream": stream}),
            ("/v1/embeddings", {"model": session.model, "input": [text] * 8}),
        )
    )
