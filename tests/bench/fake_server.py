"""A small server with known delays, framing its answers as real ones do and as awkwardly as HTTP allows."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

FIRST_TOKEN_S = 0.05
NEXT_TOKEN_S = 0.02


def words_of(body: dict[str, object]) -> list[str]:
    messages = body.get("messages")
    text = messages[0]["content"] if isinstance(messages, list) else body.get("prompt", "")
    return str(text).split()


@dataclass
class FakeServer:
    """Answers completions: the first token after ``FIRST_TOKEN_S``, each other after ``NEXT_TOKEN_S``."""

    one_at_a_time: bool = False
    style: str = "plain"
    """``"vllm"``: roles first, empty texts, usage at the end; ``"llama.cpp"``: roles first, no usage at all."""
    stall_s: float = 0.0
    """Nobody gets anything in the first so many seconds after the first request."""
    natural_length: int | None = None
    """The model ends by itself after so many tokens, whatever was asked."""
    fail: str = ""
    """``"status"``, ``"cut"`` or ``"event"``: how every second completion goes wrong."""
    blocks_in_use: list[float] = field(default_factory=lambda: [0.0])
    """What /metrics tells, one after the other."""
    bodies: list[dict[str, object]] = field(default_factory=list)
    url: str = ""
    began_s: float = 0.0

    def __post_init__(self) -> None:
        self.lock = asyncio.Lock()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        _, path, _ = head.split(" ", 2)
        length = next(
            (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0
        )
        body = json.loads(await reader.readexactly(length)) if length else {}
        try:
            if path in ("/v1/completions", "/v1/chat/completions") and body.get("stream"):
                self.bodies.append(body)
                if self.one_at_a_time:
                    async with self.lock:
                        await self.complete(writer, body, len(self.bodies))
                else:
                    await self.complete(writer, body, len(self.bodies))
            else:
                self.answer(writer, 200, self.plain(path, body))
            await writer.drain()
        finally:
            writer.close()

    def plain(self, path: str, body: dict[str, object]) -> bytes:
        if path == "/v1/models":
            return json.dumps({"data": [{"id": "fake", "max_model_len": 512}]}).encode()
        if path == "/metrics":
            if self.style == "llama.cpp":
                return b"llamacpp:requests_processing 2\nllamacpp:n_past NaN\n"
            value = self.blocks_in_use.pop(0) if len(self.blocks_in_use) > 1 else self.blocks_in_use[0]
            return f'# TYPE x gauge\nvllm:kv_cache_usage_perc{{engine="0"}} {value}\n'.encode()
        if self.style == "llama.cpp":
            return json.dumps({"choices": [{"text": "x"}], "timings": {}}).encode()
        words = words_of(body)
        return json.dumps({"choices": [{"text": "x"}], "usage": {"prompt_tokens": 2 * len(words)}}).encode()

    def answer(self, writer: asyncio.StreamWriter, status: int, content: bytes) -> None:
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(content)) + content)

    async def complete(self, writer: asyncio.StreamWriter, body: dict[str, object], number: int) -> None:
        failing = self.fail if number % 2 == 0 else ""
        if failing == "status":
            self.answer(writer, 503, b'{"error": {"message": "too busy", "code": "unavailable"}}')
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        self.began_s = self.began_s or time.monotonic()
        await asyncio.sleep(max(FIRST_TOKEN_S, self.began_s + self.stall_s - time.monotonic()))
        chat = "messages" in body
        if chat and self.style != "plain":
            content = "" if self.style == "vllm" else None
            self.event(writer, json.dumps({"choices": [{"delta": {"role": "assistant", "content": content}}]}))
        num_tokens = min(int(str(body["max_tokens"])), self.natural_length or 10**9)
        for index in range(num_tokens):
            if index:
                await asyncio.sleep(NEXT_TOKEN_S)
            text = {"delta": {"content": "wörd "}} if chat else {"text": "wörd "}
            self.event(writer, json.dumps({"choices": [{"index": 0, **text}]}, ensure_ascii=False))
            if failing == "event":
                self.event(writer, '{"error": {"message": "the engine failed"}}')
            if failing == "cut":
                return
        self.end(writer, body, num_tokens)

    def end(self, writer: asyncio.StreamWriter, body: dict[str, object], num_tokens: int) -> None:
        reason = "length" if num_tokens == body["max_tokens"] else "stop"
        self.event(writer, json.dumps({"choices": [{"text": "", "delta": {}, "finish_reason": reason}]}))
        if self.style != "llama.cpp":
            usage = {"prompt_tokens": 2 * len(words_of(body)), "completion_tokens": num_tokens}
            cached = {"prompt_tokens_details": {"cached_tokens": 3}}
            self.event(writer, json.dumps({"choices": [], "usage": usage | cached}))
        self.event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, data: str) -> None:
        """One event, cut into two HTTP chunks inside a character, after a comment."""
        whole = f": ping\n\ndata: {data}\n\n".encode()
        middle = whole.find("ö".encode()) + 1 or len(whole) // 2
        for piece in (whole[:middle], whole[middle:]):
            writer.write(b"%x;ext=1\r\n" % len(piece) + piece + b"\r\n")

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Serve from a thread of its own, so that the client's delays are not the server's."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self.handle, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self.stop(server), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def stop(self, server: asyncio.Server) -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
