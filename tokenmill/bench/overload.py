"""What a server does with far more than it can: goodput at a multiple of its capacity, and how refusals come.

Capacity is what it completes a second for so many clients in a closed loop. Goodput is what it completes a second
within the limits; its peak is the best of open-loop runs at parts of the capacity. Then comes the overload, open loop
at ``factor`` times the capacity, while another client asks ``/health/ready`` all the time. A server that admits by what
it can do keeps its goodput, refuses the rest quickly (429 or 503), and answers the one who watches.

Goodput is counted while the load lasts, at its peak as in overload: answers that ended after the first fifth of the
time, in which the queue fills, and before the last arrival, after which it only empties. What the whole run did, both
ends included, stands beside it. Connections are kept and used again, as the usual clients do; health is asked for on a
new one each time, as a probe does.

The same words never come twice, so that the prefix cache helps in no run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tokenmill.bench import load as loads
from tokenmill.bench.http import Client, HttpFailure
from tokenmill.bench.serve import Endpoint, Outcome, Progress, Server, blocks_in_use, inspect, run_load
from tokenmill.bench.serve_figures import figures
from tokenmill.core.errors import ConfigError
from tokenmill.perf.metrics import SLO, summarize

REFUSED = ("HTTP 429", "HTTP 503")
HEALTH_PATH = "/health/ready"
HEALTH_EVERY_S = 0.05
PARTS = (0.6, 0.8, 0.9, 1.0)
"""Of the capacity: rates at which the peak is looked for."""
FILLING = 0.2
"""Part of a run at its beginning in which goodput is not counted yet."""


@dataclass(frozen=True, slots=True)
class OverloadOptions:
    """The names of the command's options."""

    model: str | None = None
    endpoint: Endpoint = "completions"
    clients: int = 64
    factor: float = 5.0
    seconds: float = 20.0
    prompt_tokens: str = "16-128"
    output_tokens: str = "16-64"
    seed: int = 0

    def check(self) -> None:
        """Raises ``ConfigError`` for what cannot be."""
        if self.factor <= 1 or self.seconds <= 0:
            raise ConfigError("--factor must be more than 1, and --seconds more than 0")


async def measure_overload(
    client: Client,
    options: OverloadOptions,
    limits: SLO,
    progress: Callable[[str, int], Progress] = lambda what, total: lambda answered, failed: None,
) -> dict[str, Any]:
    """Everything that a result says, but for machine and command.

    Raises:
        ConfigError: options that cannot be; SetupError: no such server or model.
    """
    options.check()
    server = await inspect(client, options.model, options.endpoint)
    first = await _run(server, options, "capacity", options.clients * 4, None, limits, progress)
    guess = first["throughput"]["requests_per_s"]
    # Long enough now that the pace is known, so that its beginning and end do not count for much.
    count = max(options.clients * 4, int(guess * options.seconds))
    closed = await _run(server, options, "capacity, again", count, None, limits, progress)
    capacity = closed["throughput"]["requests_per_s"]
    points = []
    for part in PARTS:
        rate = part * capacity
        run = await _run(server, options, f"{part:g} × capacity", int(rate * options.seconds), rate, limits, progress)
        points.append({"part_of_capacity": part, "rate_per_s": rate, **run})
    peak = max(_good(point) for point in points)
    rate = options.factor * capacity
    async with _watching(client) as health:
        over = await _run(
            server, options, f"{options.factor:g} × capacity", int(rate * options.seconds), rate, limits, progress
        )
    return {
        "engine": {"name": server.software},
        "model": server.model,
        "server": {"url": client.base_url, "model": server.model, "max_context": server.max_context},
        "load": {
            "endpoint": options.endpoint,
            "arrivals": "poisson",
            "lengths": {"prompt": options.prompt_tokens, "output": options.output_tokens},
            "clients_at_capacity": options.clients,
            "seconds": options.seconds,
            "seed": options.seed,
        },
        "capacity": {"requests_per_s": capacity, **closed},
        "points": points,
        "overload": {"factor": options.factor, "rate_per_s": rate, **over, "health": health.report()},
        "peak_goodput_per_s": peak,
        "goodput_share_of_peak": _good(over) / peak if peak else 0.0,
        "blocks_in_use": await blocks_in_use(client),
    }


async def _run(
    server: Server,
    options: OverloadOptions,
    what: str,
    count: int,
    rate: float | None,
    limits: SLO,
    progress: Callable[[str, int], Progress],
) -> dict[str, Any]:
    rng = random.Random(f"{options.seed}:{what}")
    ranges = loads.parse_range(options.prompt_tokens), loads.parse_range(options.output_tokens)
    load = loads.plan_load(loads.uniform_lengths(count, *ranges, rng), rate, rng)
    concurrency = options.clients if rate is None else None
    run = await run_load(server, load, f"{options.seed}:{what}", progress(what, count), concurrency=concurrency)
    found = figures(run, limits)
    del found["samples"]
    return {**found, "sustained": _sustained(run.outcomes, limits), "refusals": _refusals(run.outcomes)}


def _sustained(outcomes: Sequence[Outcome], limits: SLO) -> dict[str, float]:
    """Answers a second while the load lasted: all that were completed, and those within the limits."""
    last_s = max(outcome.planned.send_s for outcome in outcomes)
    begin_s = FILLING * last_s
    seconds = max(last_s - begin_s, 1e-9)
    ended = [o for o in outcomes if o.status == "completed" and begin_s <= o.last_s <= last_s]
    good = sum(limits.met_by(outcome.timeline()) for outcome in ended)
    return {
        "begin_s": begin_s,
        "end_s": last_s,
        "completed_per_s": len(ended) / seconds,
        "goodput_per_s": good / seconds,
    }


def _refusals(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How many were refused and how quickly, and what else went wrong."""
    refused = [o for o in outcomes if o.error is not None and any(status in o.error for status in REFUSED)]
    others = [o.error for o in outcomes if o.error is not None and o not in refused]
    return {
        "count": len(refused),
        "answer_s": summarize([o.end_s - o.sent_s for o in refused]),
        "other_errors": len(others),
    }


def _good(run: dict[str, Any]) -> float:
    return float(run["sustained"]["goodput_per_s"])


@dataclass(slots=True)
class _Health:
    """What whoever watches the server saw."""

    answers_s: list[float] = field(default_factory=list)
    failed: int = 0

    def report(self) -> dict[str, Any]:
        return {
            "asked": len(self.answers_s) + self.failed,
            "failed": self.failed,
            "answer_s": summarize(self.answers_s),
        }


@asynccontextmanager
async def _watching(client: Client) -> AsyncIterator[_Health]:
    """Ask for the server's health, again and again, while the ``with`` lasts."""
    health = _Health()

    async def watch() -> None:
        while True:
            began_s = time.perf_counter()
            try:
                await client.get(HEALTH_PATH)  # a connection of its own each time, as a probe has
                health.answers_s.append(time.perf_counter() - began_s)
            except HttpFailure:
                health.failed += 1
            await asyncio.sleep(HEALTH_EVERY_S)

    task = asyncio.create_task(watch())
    try:
        yield health
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
