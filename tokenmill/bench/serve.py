"""Open-loop load against any server that speaks OpenAI's completions: what its clients would have seen.

The run is fixed beforehand (``bench/load.py``); each request is one streamed completion whose events are stamped
as they arrive. Latencies count from the moment at which the request was meant to be sent. ``client_lag`` says how
late this program itself was: where it is not small beside the latencies, the client was the bottleneck and the
figures are the client's. A request that fails counts as a failure and as no goodput; it has no latency.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenmill.bench.http import Client, HttpFailure
from tokenmill.bench.load import PlannedRequest, synthetic_text
from tokenmill.core.errors import SetupError
from tokenmill.perf.metrics import SLO, Timeline, goodput, summarize

CALIBRATION_WORDS = 64
BLOCKS_IN_USE = re.compile(r"^(?:tokenmill_|vllm:)kv_cache_usage_perc\S*\s+(\S+)", re.MULTILINE)
"""The metric that must be 0 when nobody is served."""
SETTLE_S = 5.0
"""How long after the last answer blocks may take to become free."""

Progress = Callable[[int, int], None]
"""(answered, failed)"""


@dataclass(slots=True)
class Outcome:
    """What became of one request. Moments are seconds since the run began."""

    planned: PlannedRequest
    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    """Of every event that carried text."""
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    def timeline(self) -> Timeline:
        meant_s = self.planned.send_s
        first_s = self.arrivals_s[0] if self.arrivals_s else self.end_s
        gaps = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return Timeline(first_s - meant_s, self.end_s - meant_s, tuple(b - a for a, b in gaps), self.output_tokens)


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test, as it describes itself."""

    client: Client
    model: str
    max_context: int | None
    tokens_per_word: float
    """Of this benchmark's prompts, measured."""


async def inspect(client: Client, model: str | None) -> Server:
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
        answer = await client.post("/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 1})
        tokens_per_word = answer["usage"]["prompt_tokens"] / CALIBRATION_WORDS
    except (HttpFailure, KeyError, TypeError, ValueError) as error:
        raise SetupError(f"no OpenAI-compatible server at {client.base_url}: {error}") from error
    context = listed[model].get("max_model_len") or listed[model].get("max_context")
    return Server(client, model, context, tokens_per_word)


async def run_load(server: Server, load: Sequence[PlannedRequest], seed: int, progress: Progress) -> list[Outcome]:
    """Send every request at its moment, whatever became of the others."""
    prompts = [_prompt(request, server, random.Random(f"{seed}:{i}")) for i, request in enumerate(load)]
    outcomes = [Outcome(request) for request in load]
    ended = Counter[bool]()
    start_s = time.perf_counter()

    async def send(outcome: Outcome, prompt: str) -> None:
        await asyncio.sleep(outcome.planned.send_s - (time.perf_counter() - start_s))
        await _ask(server, outcome, prompt, start_s)
        ended[outcome.error is None] += 1
        progress(ended[True], ended[False])

    async with asyncio.TaskGroup() as tasks:
        for outcome, prompt in zip(outcomes, prompts, strict=True):
            tasks.create_task(send(outcome, prompt))
    return outcomes


async def _ask(server: Server, outcome: Outcome, prompt: str, start_s: float) -> None:
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": outcome.planned.output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    outcome.sent_s = time.perf_counter() - start_s
    try:
        async for arrival, event in server.client.stream("/v1/completions", body):
            if any(choice.get("text") for choice in event.get("choices", ())):
                outcome.arrivals_s.append(arrival - start_s)
            if usage := event.get("usage"):
                outcome.prompt_tokens = usage["prompt_tokens"]
                outcome.output_tokens = usage["completion_tokens"]
                outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if outcome.output_tokens == 0:
            outcome.error = "the stream carried no usage"
    except (HttpFailure, KeyError, TypeError, AttributeError) as error:
        outcome.error = str(error) or type(error).__name__
    outcome.end_s = time.perf_counter() - start_s


def figures(outcomes: Sequence[Outcome], slo: SLO) -> dict[str, Any]:
    """Latencies in seconds, rates per second over the whole run (first intended send to last answer)."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    timelines = [outcome.timeline() for outcome in good]
    duration_s = max((outcome.end_s for outcome in outcomes), default=0.0) or 1e-9
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    return {
        "requests": len(outcomes),
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "errors": dict(errors.most_common(10)),
        "duration_s": duration_s,
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in good),
        "cached_tokens": sum(outcome.cached_tokens for outcome in good),
        "output_tokens": sum(outcome.output_tokens for outcome in good),
        "short_answers": sum(outcome.output_tokens < outcome.planned.output_tokens for outcome in good),
        "requests_per_s": len(good) / duration_s,
        "input_tokens_per_s": sum(outcome.prompt_tokens for outcome in good) / duration_s,
        "output_tokens_per_s": sum(outcome.output_tokens for outcome in good) / duration_s,
        "slo": {name: limit for name, limit in asdict(slo).items() if limit is not None},
        "goodput_per_s": goodput(timelines, slo, duration_s),
        "ttft_s": summarize(timeline.ttft_s for timeline in timelines),
        "tpot_s": summarize(timeline.tpot_s for timeline in timelines if timeline.output_tokens > 1),
        "itl_s": summarize(gap for timeline in timelines for gap in timeline.itl_s),
        "e2e_s": summarize(timeline.e2e_s for timeline in timelines),
        "client_lag_s": summarize(outcome.sent_s - outcome.planned.send_s for outcome in outcomes),
    }


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
        SetupError: an unknown name or no number.
    """
    limits: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.partition("=")
        try:
            limits[{"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2e": "e2e_s"}[name.strip()]] = float(value)
        except (KeyError, ValueError):
            raise SetupError(
                f"--slo {text!r}: write limits in seconds, such as ttft=0.5,tpot=0.05,itl=0.2,e2e=10"
            ) from None
    return SLO(**limits)


def _prompt(request: PlannedRequest, server: Server, rng: random.Random) -> str:
    return synthetic_text(max(1, int(request.prompt_tokens / server.tokens_per_word)), rng)


def _json_list(text: str) -> list[dict[str, Any]]:
    data = json.loads(text)["data"]
    return [entry for entry in data if isinstance(entry, dict)]
