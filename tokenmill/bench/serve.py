"""Load against any server that speaks OpenAI's API: what its clients would have seen.

Open loop: the run is fixed beforehand (``bench/load.py``) and each request goes out at its moment, whatever became of
the others; latencies count from the moment at which it was *meant* to be sent, so that neither a server nor a client
that falls behind can hide it (coordinated omission). Closed loop: so many clients, each of which sends its next
request when it has its answer. That shows what a server can do, and nothing of how long a queue would be: a slow server
is asked less often.

Each request is one streamed answer whose events are stamped as they arrive. Nothing is asked of the server but what
OpenAI's API says: lengths are forced by ``ignore_eos``, which servers that do not know it ignore; tokens are counted
by the server's ``usage``, and where it sends none by ``finish_reason: length`` or by the pieces that arrived.

Nothing is tried again. ``Run.loop_lags_s`` and ``Outcome.sent_s`` say how late this program itself was: where that is
not small beside the latencies, the client was the bottleneck and the figures are the client's.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tokenmill.bench.http import Client, HttpFailure
from tokenmill.bench.load import PlannedRequest, prompt_text, synthetic_text
from tokenmill.core.errors import SetupError
from tokenmill.perf.metrics import SLO, Timeline, parse_limit

CALIBRATION_WORDS = 64
BLOCKS_IN_USE = re.compile(r"^(?:tokenmill_|vllm:)kv_cache_usage_perc\S*\s+(\S+)", re.MULTILINE)
"""The metric that must be 0 when nobody is served."""
SETTLE_S = 5.0
"""How long after the last answer blocks may take to become free."""
TICK_S = 0.01
"""How often the client's event loop is asked whether it is late."""
TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")
"""Parts of a chat's delta that are tokens; a first delta with the role alone is none."""

Endpoint = Literal["completions", "chat"]
PATHS: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
Status = Literal["completed", "failed", "cancelled", "truncated"]
Progress = Callable[[int, int], None]
"""(answered, failed)"""


@dataclass(slots=True)
class Outcome:
    """What became of one request. Moments are seconds since the run began."""

    planned: PlannedRequest
    """In a closed loop, its moment is the one at which it was sent."""
    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    """Of every event that carried text."""
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None
    cancelled: bool = False
    finish_reason: str | None = None
    counted_by: Literal["usage", "length", "pieces"] = "usage"
    """Where ``output_tokens`` is from."""

    @property
    def status(self) -> Status:
        if self.error is not None:
            return "failed"
        if self.cancelled or self.finish_reason in ("abort", "cancelled", "canceled"):
            return "cancelled"
        short = self.output_tokens < self.planned.output_tokens
        return "truncated" if short and not self.planned.may_end_early else "completed"

    @property
    def first_s(self) -> float:
        return self.arrivals_s[0] if self.arrivals_s else self.end_s

    @property
    def last_s(self) -> float:
        return self.arrivals_s[-1] if self.arrivals_s else self.end_s

    def timeline(self) -> Timeline:
        """As its user saw it: from the moment at which it was meant to be sent to the last text."""
        meant_s = self.planned.send_s
        gaps = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return Timeline(
            self.first_s - meant_s, self.last_s - meant_s, tuple(b - a for a, b in gaps), self.output_tokens
        )

    def take(self, event: Mapping[str, Any], arrival_s: float) -> None:
        """Read one event of the stream."""
        for choice in event.get("choices") or ():
            if _has_text(choice):
                self.arrivals_s.append(arrival_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if usage := event.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.output_tokens = usage["completion_tokens"]
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def count_without_usage(self) -> None:
        """The server counted nothing: its word that the length was reached, else the pieces."""
        reached = self.finish_reason == "length"
        self.counted_by = "length" if reached else "pieces"
        self.output_tokens = self.planned.output_tokens if reached else len(self.arrivals_s)
        self.prompt_tokens = self.planned.prompt_tokens


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test, as it describes itself."""

    client: Client
    model: str
    max_context: int | None
    tokens_per_word: float
    """Of this benchmark's prompts, measured; 1 where the server does not count."""
    endpoint: Endpoint = "completions"
    software: str = "unknown"


@dataclass(slots=True)
class Run:
    """One load, carried out."""

    outcomes: list[Outcome]
    concurrency: int | None
    """None: open loop."""
    loop_lags_s: list[float] = field(default_factory=list)
    """How late the client's event loop was, every ``TICK_S``."""
    cpu_share: float = 0.0
    """Of one core, what the client itself used."""


async def inspect(client: Client, model: str | None, endpoint: Endpoint = "completions") -> Server:
    """Ask the server what it serves, and how many tokens a word of ours has.

    Raises:
        SetupError: it cannot be reached, or does not serve ``model``.
    """
    try:
        listed = {entry["id"]: entry for entry in _json_list(await client.get("/v1/models"))}
        if model is None:
            model = next(iter(listed), None)
        if model is None or model not in listed:
            raise SetupError(f"{client.base_url} serves {', '.join(listed) or 'no model'}, not {model}")
        prompt = synthetic_text(CALIBRATION_WORDS, random.Random(0))
        answer = await client.post(PATHS[endpoint], _body(model, endpoint, prompt, 1))
        counted = (answer.get("usage") or {}).get("prompt_tokens") or CALIBRATION_WORDS
    except (HttpFailure, KeyError, TypeError, AttributeError, ValueError) as error:
        raise SetupError(f"no OpenAI-compatible server at {client.base_url}: {error}") from error
    entry = listed[model]
    context = entry.get("max_model_len") or entry.get("max_context")
    software = str(entry.get("owned_by") or "unknown")
    return Server(client, model, context, counted / CALIBRATION_WORDS, endpoint, software)


async def run_load(
    server: Server,
    load: Sequence[PlannedRequest],
    seed: str,
    progress: Progress,
    *,
    concurrency: int | None = None,
) -> Run:
    """Send every request at its moment, whatever became of the others; with ``concurrency``, in a closed loop.

    ``seed``: of the prompts' words; the same one again finds them in a server's prefix cache.
    """
    run = Run([Outcome(request) for request in load], concurrency)
    async with server.client.pooled() as client:
        server = replace(server, client=client)
        prompts = (prompt_text(request, server.tokens_per_word, seed, i) for i, request in enumerate(load))
        bodies = [_stream_body(server, each, prompt) for each, prompt in zip(load, prompts, strict=True)]
        requests = [client.request("POST", PATHS[server.endpoint], body) for body in bodies]
        await _send_all(server, run, requests, progress)
    return run


async def _send_all(server: Server, run: Run, requests: Sequence[bytes], progress: Progress) -> None:
    ended = Counter[bool]()
    watch = asyncio.create_task(_watch_loop(run.loop_lags_s))
    cpu_s, start_s = time.process_time(), time.perf_counter()

    async def send(outcome: Outcome, request: bytes) -> None:
        await _ask(server, outcome, request, start_s)
        ended[outcome.error is None] += 1
        progress(ended[True], ended[False])

    async def send_at_its_moment(outcome: Outcome, request: bytes) -> None:
        await asyncio.sleep(outcome.planned.send_s - (time.perf_counter() - start_s))
        await send(outcome, request)

    pairs = iter(list(zip(run.outcomes, requests, strict=True)))

    async def send_one_after_the_other() -> None:
        for outcome, request in pairs:  # shared by all clients of the closed loop
            outcome.planned = replace(outcome.planned, send_s=time.perf_counter() - start_s)
            await send(outcome, request)

    try:
        async with asyncio.TaskGroup() as tasks:
            if run.concurrency is None:
                for outcome, request in pairs:
                    tasks.create_task(send_at_its_moment(outcome, request))
            else:
                for _ in range(run.concurrency):
                    tasks.create_task(send_one_after_the_other())
    finally:
        watch.cancel()
    run.cpu_share = (time.process_time() - cpu_s) / max(time.perf_counter() - start_s, 1e-9)


async def _ask(server: Server, outcome: Outcome, request: bytes, start_s: float) -> None:
    client, path, planned = server.client, PATHS[server.endpoint], outcome.planned
    end_s = None
    outcome.sent_s = time.perf_counter() - start_s
    try:
        if planned.give_up_after is None:
            end_s = await client.replay(path, request, lambda at_s, event: outcome.take(event, at_s - start_s))
        else:
            async with aclosing(client.stream(path, request)) as events:
                async for arrival_s, event in events:
                    outcome.take(event, arrival_s - start_s)
                    if len(outcome.arrivals_s) >= planned.give_up_after:
                        outcome.cancelled = True
                        break
        if outcome.output_tokens == 0:
            outcome.count_without_usage()
        if outcome.output_tokens == 0:
            outcome.error = "the answer was empty"
    except (HttpFailure, KeyError, TypeError, AttributeError) as error:
        outcome.error = str(error) or type(error).__name__
    outcome.end_s = (end_s or time.perf_counter()) - start_s


async def blocks_in_use(client: Client) -> float | None:
    """Share of the KV blocks that requests still hold, once the server had time to settle; None if it does not tell."""
    deadline_s = time.perf_counter() + SETTLE_S
    while True:
        try:
            text = await client.get("/metrics")
        except HttpFailure:
            return None
        found = BLOCKS_IN_USE.search(text)
        if found is None:
            return None
        held = float(found[1])
        if held == 0 or time.perf_counter() > deadline_s:
            return held
        await asyncio.sleep(0.1)


def parse_slo(text: str | None) -> SLO:
    """``"ttft=0.5,itl=0.1"`` (seconds) → limits; None → no limits.

    Raises:
        SetupError: an unknown name.
        ConfigError: no time above 0.
    """
    limits: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in ("ttft", "tpot", "itl", "e2e"):
            raise SetupError(f"--slo {text!r}: write limits in seconds, such as ttft=0.5,tpot=0.05,itl=0.2,e2e=10")
        limits[f"{name}_s"] = parse_limit(name, value)
    return SLO(**limits)


async def _watch_loop(lags_s: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        lags_s.append(time.perf_counter() - began - TICK_S)


def _stream_body(server: Server, planned: PlannedRequest, prompt: str) -> dict[str, Any]:
    body = _body(server.model, server.endpoint, prompt, planned.output_tokens)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body if planned.may_end_early else body | {"ignore_eos": True}


def _body(model: str, endpoint: Endpoint, prompt: str, max_tokens: int) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": prompt}]} if endpoint == "chat" else {"prompt": prompt}
    return {"model": model, **asked, "max_tokens": max_tokens}


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta.get(name) for name in TEXT_FIELDS)


def _json_list(text: str) -> list[dict[str, Any]]:
    data = json.loads(text)["data"]
    return [entry for entry in data if isinstance(entry, dict)]
