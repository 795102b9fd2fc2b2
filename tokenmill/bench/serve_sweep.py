"""``bench serve`` from end to end: the load, a run of it at each rate or number of clients, and one result of all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenmill.bench import load as loads
from tokenmill.bench.http import Client
from tokenmill.bench.load import PlannedRequest
from tokenmill.bench.null_server import calibrate
from tokenmill.bench.scrape import scraping
from tokenmill.bench.serve import Endpoint, Progress, blocks_in_use, inspect, parse_slo, run_load
from tokenmill.bench.serve_figures import figures, parse_warmup
from tokenmill.core.errors import ConfigError

CONTEXT_SHARE = 0.9
"""Of the context, what prompt and answer may take: the prompt's length in tokens is foreseen, not exact."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to send where; the names of the command's options."""

    model: str | None = None
    endpoint: Endpoint = "completions"
    num_requests: int = 100
    rates: tuple[float, ...] = ()
    concurrencies: tuple[int, ...] = ()
    arrivals: str = "poisson"
    prompt_tokens: str = "16-256"
    output_tokens: str = "16-128"
    lengths: Path | None = None
    trace: Path | None = None
    trace_speed: float = 1.0
    max_context: int | None = None
    ignore_eos: bool = True
    warmup: str = "0"
    cancel: float = 0.0
    slo: str | None = None
    calibrate: bool = False
    metrics: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises ``ConfigError`` for options that contradict one another."""
        if self.rates and self.concurrencies:
            raise ConfigError("--rate is open loop, --concurrency closed loop: give one of them")
        if self.trace and (self.rates or self.concurrencies):
            raise ConfigError("--trace brings its own moments: give --trace-speed instead of --rate or --concurrency")
        if self.trace and self.lengths:
            raise ConfigError("--trace brings its own lengths: leave --lengths out")
        if self.metrics and not self.metrics.startswith(("http://", "https://")):
            raise ConfigError(f"--metrics {self.metrics!r}: write an address such as http://127.0.0.1:8000/metrics")
        if any(rate <= 0 for rate in self.rates) or self.trace_speed <= 0:
            raise ConfigError("--rate and --trace-speed must be more than 0")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep: a rate, a number of clients, or neither."""

    rate: float | None = None
    concurrency: int | None = None

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"closed loop, {self.concurrency} at once"
        return "all at once" if self.rate is None else f"{self.rate:g} a second"


async def measure(
    client: Client, options: ServeOptions, progress: Callable[[Point, int], Progress] = lambda point, total: _quiet
) -> dict[str, Any]:
    """Everything that a result says, but for machine and command.

    Args:
        progress: makes, for each run and its number of requests, what is told how far it is.

    Raises:
        ConfigError: options that cannot be; SetupError: no such server or model.
    """
    options.check()
    limits, warmup = parse_slo(options.slo), parse_warmup(options.warmup)
    points = [Point(rate=rate) for rate in options.rates] + [Point(concurrency=n) for n in options.concurrencies]
    points = points or [Point()]
    plan = _Plan.make(options)  # what is wrong with files and ranges is said before the server is asked
    server = await inspect(client, options.model, options.endpoint)
    context = options.max_context or server.max_context
    runs, num_scaled = [], 0
    for number, point in enumerate(points):
        load, num_scaled = plan.load(point, context)
        audit = await calibrate(server, load, point.concurrency) if options.calibrate else None
        async with scraping(options.metrics, client) as scrape:
            told = progress(point, len(load))
            run = await run_load(server, load, f"{options.seed}:{number}", told, concurrency=point.concurrency)
        found = figures(run, limits, warmup)
        found["client"]["calibration"] = audit
        runs.append(
            {"rate_per_s": _mean_rate(load) if options.trace else point.rate, "concurrency": point.concurrency}
            | found
            | {"blocks_in_use": await blocks_in_use(client)}
            | ({**scrape.report(), "agreement": scrape.agreement(run.outcomes)} if scrape else {})
        )
    return {
        "engine": {"name": server.software},
        "model": server.model,
        "server": {"url": client.base_url, "model": server.model, "max_context": context},
        "load": _described(options, num_scaled),
        **(runs[0] if len(runs) == 1 else {"points": runs}),
    }


@dataclass(frozen=True, slots=True)
class _Plan:
    """The load but for its rate. Each run draws the same lengths."""

    options: ServeOptions
    lengths: list[tuple[int, int]]
    trace: list[PlannedRequest] | None

    @classmethod
    def make(cls, options: ServeOptions) -> _Plan:
        rng = random.Random(options.seed)
        loads.arrival_times(1, 1.0, rng, options.arrivals)
        if options.trace is not None:
            trace = loads.trace_load(options.trace, options.num_requests, options.trace_speed, options.seed)
            return cls(options, [(request.prompt_tokens, request.output_tokens) for request in trace], trace)
        if options.lengths is not None:
            return cls(options, loads.csv_lengths(options.lengths, options.num_requests, rng), None)
        ranges = loads.parse_range(options.prompt_tokens), loads.parse_range(options.output_tokens)
        return cls(options, loads.uniform_lengths(options.num_requests, *ranges, rng), None)

    def load(self, point: Point, context: int | None) -> tuple[list[PlannedRequest], int]:
        """The requests, and how many of them were scaled to the context."""
        options, lengths, num_scaled = self.options, self.lengths, 0
        if context is not None:
            lengths, num_scaled = loads.scale_to_context(lengths, int(context * CONTEXT_SHARE))
        rng = random.Random(f"{options.seed}:arrivals")
        if self.trace is not None:
            load = _with_lengths(self.trace, lengths)
        else:
            load = loads.plan_load(lengths, point.rate, rng, options.arrivals)
        load = loads.give_up(load, options.cancel, rng)
        return [replace(request, may_end_early=not options.ignore_eos) for request in load], num_scaled


def _with_lengths(trace: Sequence[PlannedRequest], lengths: Sequence[tuple[int, int]]) -> list[PlannedRequest]:
    return [
        replace(request, prompt_tokens=prompt, output_tokens=output)
        for request, (prompt, output) in zip(trace, lengths, strict=True)
    ]


def _mean_rate(load: Sequence[PlannedRequest]) -> float | None:
    """Of a trace; None where everything comes at once."""
    span_s = load[-1].send_s
    return (len(load) - 1) / span_s if span_s > 0 else None


def _described(options: ServeOptions, num_scaled: int) -> dict[str, Any]:
    source = options.trace or options.lengths
    drawn = {"prompt": options.prompt_tokens, "output": options.output_tokens}
    return {
        "loop": "closed" if options.concurrencies else "open",
        "endpoint": options.endpoint,
        "requests": options.num_requests,
        "arrivals": "trace" if options.trace else options.arrivals,
        "trace_speed": options.trace_speed if options.trace else None,
        "lengths": source.name if source else drawn,
        "scaled_to_context": num_scaled,
        "lengths_forced": options.ignore_eos,
        "warmup": options.warmup,
        "cancel_share": options.cancel,
        "seed": options.seed,
    }


def _quiet(answered: int, failed: int) -> None:
    pass
