"""The server's own figures beside the client's: ``/metrics`` in Prometheus' text form, once a second during a run.

Kept are the gauges and counters that say how busy an engine is, under whatever name it gives them: requests running and
waiting, cache use, tokens, preemptions, prefix hits, memory and processor time. Series that differ only in labels are
added up. All through the run the round trip of a question is measured that is answered at once. A server without
metrics, or one that stops answering, costs the figures and not the run.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tokenmill.bench.agreement import agreement, names_wanted
from tokenmill.bench.http import Client, HttpFailure
from tokenmill.bench.serve import Outcome

INTERVAL_S = 1.0
ROUND_TRIP_EVERY_S = 0.05
ROUND_TRIP_PATH = "/health"
TIMEOUT_S = 5.0
LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)
KEPT = re.compile(
    r"requests?_(running|waiting|processing|deferred|swapped|total)|num_(running|waiting|queue)|cache_usage|"
    r"blocks|tokens_total|preempt|prefix_cache|cache_hit|resident_memory_bytes|cpu_seconds_total"
)
DROPPED = re.compile(r"_(bucket|created|sum|count)$")


def parse_metrics(text: str, wanted: frozenset[str] = frozenset()) -> dict[str, float]:
    """Name → value, added up over labels, nothing that is not finite; of ``wanted``, or else what ``KEPT`` names."""
    found: dict[str, float] = {}
    for name, value in LINE.findall(text):
        if name not in wanted if wanted else not KEPT.search(name) or DROPPED.search(name):
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            found[name] = found.get(name, 0.0) + number
    return found


@dataclass(slots=True)
class Scrape:
    """What was read of one address, once a second."""

    url: str
    times_s: list[float] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    sums: list[dict[str, float]] = field(default_factory=list)
    """Of the first and the last reading, what the client's own figures are compared with."""
    round_trips_s: list[float] = field(default_factory=list)
    """Of requests to the server that have their answer at once."""
    failed: int = 0
    error: str | None = None
    """The last one."""

    def report(self) -> dict[str, Any]:
        """``series``: one column per metric, null where a sample lacked it; ``metrics``: before and after."""
        names = sorted({name for sample in self.samples for name in sample})
        return {
            "metrics": {
                "url": self.url,
                "samples": len(self.samples),
                "failed": self.failed,
                "error": self.error,
                "before": self.samples[0] if self.samples else {},
                "after": self.samples[-1] if self.samples else {},
            },
            "series": {"t_s": self.times_s} | {name: [s.get(name) for s in self.samples] for name in names},
        }

    async def read(self, client: Client, path: str, began_s: float) -> None:
        try:
            text = await client.get(path)
        except HttpFailure as error:
            self.failed += 1
            self.error = error.message
        else:
            self.times_s.append(round(time.perf_counter() - began_s, 3))
            self.samples.append(parse_metrics(text))
            self.sums[1:] = [parse_metrics(text, names_wanted())]

    def agreement(self, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
        """The server's figures beside the client's (``bench/agreement.py``); None where they cannot be compared."""
        return agreement(outcomes, self.sums[0], self.sums[-1], self.round_trips_s) if len(self.sums) > 1 else None


@asynccontextmanager
async def scraping(url: str | None, server: Client) -> AsyncIterator[Scrape | None]:
    """Read ``url`` at the beginning, every second, and at the end of the ``with``; nothing without a ``url``.

    ``server``'s key is sent to its own address only.
    """
    if url is None:
        yield None
        return
    parts = urlsplit(url)
    api_key = server.api_key if urlsplit(server.base_url).netloc == parts.netloc else None
    client = Client(f"{parts.scheme}://{parts.netloc}", api_key, TIMEOUT_S)
    path = parts.path if parts.path not in ("", "/") else "/metrics"
    scrape, began_s = Scrape(url), time.perf_counter()
    await scrape.read(client, path, began_s)

    async def read_on() -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await scrape.read(client, path, began_s)

    async def go_and_come() -> None:
        async with server.pooled() as kept:
            while True:
                sent_s = time.perf_counter()
                try:
                    await kept.get(ROUND_TRIP_PATH)
                except HttpFailure:
                    return  # it has no such address
                scrape.round_trips_s.append(time.perf_counter() - sent_s)
                await asyncio.sleep(ROUND_TRIP_EVERY_S)

    tasks = [asyncio.create_task(read_on()), asyncio.create_task(go_and_come())]
    try:
        yield scrape
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await scrape.read(client, path, began_s)
