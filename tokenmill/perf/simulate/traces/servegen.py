"""ServeGen's clients (Xiang et al., arXiv 2505.09999): a production workload as many small ones, each with its habits.

The archive holds two files per client: ``chunk-i-trace.csv`` (window's start in seconds, requests a second, CV of gaps,
their distribution, its shape and scale) and ``chunk-i-dataset.json`` (per six hours, distributions of input and output
lengths, as text). Each client is a renewal process within a window; its requests carry its name as their tenant.
"""

from __future__ import annotations

import ast
import json
import math
import random
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.perf.simulate.arrivals import gamma_gaps
from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.traces.lines import Line
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace

MEMBER = re.compile(r"chunk-(\w+)-(trace\.csv|dataset\.json)$")
COLUMNS = ("start", "rate", "cv", "distribution", "shape", "scale")
WINDOW_S = (0.0, 3600.0)
"""What is drawn from if no window is given: the first hour."""


@dataclass(frozen=True, slots=True)
class _Window:
    """A client's habit for a while."""

    start_s: float
    end_s: float
    rate: float
    cv: float
    distribution: str
    shape: float
    scale: float

    def overlap_s(self, begin_s: float, end_s: float) -> float:
        return max(0.0, min(self.end_s, end_s) - max(self.start_s, begin_s))

    def gap(self, rng: random.Random) -> float:
        if self.distribution == "Gamma":
            return rng.gammavariate(self.shape, self.scale)
        if self.distribution == "Weibull":
            return rng.weibullvariate(self.scale, self.shape)
        return gamma_gaps(self.cv, 1 / self.rate, rng) if self.cv > 0 else 1 / self.rate


@dataclass(slots=True)
class _Lengths:
    """A distribution of lengths, drawn by its cumulated weights."""

    values: list[int]
    totals: list[float]

    def draw(self, rng: random.Random) -> int:
        index = bisect_right(self.totals, rng.random() * self.totals[-1])
        return self.values[min(index, len(self.values) - 1)]


@dataclass(slots=True)
class _Client:
    name: str
    windows: list[_Window] = field(default_factory=list)
    dataset: dict[float, dict[str, str]] = field(default_factory=dict)
    parsed: dict[tuple[float, str], _Lengths] = field(default_factory=dict)


def read(path: Path, draw: Draw) -> Trace:
    """Requests of all clients in ``draw.window_s``, at ``draw.rate`` in all if that is given."""
    begin_s, end_s = draw.window_s or WINDOW_S
    clients = _clients(path, begin_s, end_s)
    busy = [window for client in clients for window in client.windows]
    expected = sum(window.overlap_s(begin_s, end_s) * window.rate for window in busy) / max(end_s - begin_s, 1e-9)
    if expected <= 0:
        raise ConfigError(f"{path.name}: no client sends anything from {begin_s:g} to {end_s:g} s")
    faster = draw.rate / expected if draw.rate else 1.0
    requests: list[TraceRequest] = []
    for client in clients:
        requests += _requests(path, client, (begin_s, end_s), faster, draw.rng(client.name))
    trace = make_trace(path.name, "servegen", requests, clients=len(clients))
    return replace(trace, requests=trace.requests[: draw.requests])


def _clients(path: Path, begin_s: float, end_s: float) -> list[_Client]:
    found: dict[str, _Client] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                match = MEMBER.search(member.name)
                content = archive.extractfile(member) if match else None
                if match is None or content is None:
                    continue
                client = found.setdefault(match[1], _Client(f"client-{match[1]}"))
                text = content.read().decode("utf-8")
                if match[2] == "trace.csv":
                    client.windows = _windows(path / member.name, text)
                else:
                    client.dataset = _dataset(path / member.name, text)
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not a readable archive of clients ({error})") from error
    whole = [found[name] for name in sorted(found) if found[name].windows and found[name].dataset]
    for client in whole:
        client.windows = [w for w in client.windows if w.rate > 0 and w.overlap_s(begin_s, end_s) > 0]
    if not whole:
        raise ConfigError(f"{path.name}: holds no pair of chunk-i-trace.csv and chunk-i-dataset.json")
    return whole


def _windows(path: Path, text: str) -> list[_Window]:
    """Each lasts until the next one starts, the last as long as the one before."""
    found: list[_Window] = []
    for number, row in enumerate(text.splitlines(), 1):
        line = Line(path, number, dict(zip(COLUMNS, row.split(","), strict=False)))
        rate, name = line.number_of("rate"), str(line.value("distribution"))
        if rate < 0 or name not in ("", "Gamma", "Weibull"):
            raise line.error("distribution" if rate >= 0 else "rate", f"is not understood: {row!r}")
        shape, scale = (line.number_of("shape"), line.number_of("scale")) if name else (1.0, 1.0)
        if not (shape > 0 and scale > 0):
            raise line.error("shape", f"shape and scale must be above 0: {row!r}")
        start_s = line.number_of("start")
        found.append(_Window(start_s, start_s, rate, _cv(line), name, shape, scale))
    starts = [window.start_s for window in found]
    ends = [*starts[1:], 2 * starts[-1] - starts[-2] if len(starts) > 1 else math.inf] if starts else []
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        raise ConfigError(f"{path.name}, start: windows must begin one after the other")
    return [replace(window, end_s=end) for window, end in zip(found, ends, strict=True)]


def _cv(line: Line) -> float:
    """Given only where there were enough requests to tell."""
    return line.number_of("cv") if line.fields.get("cv") else 1.0


def _dataset(path: Path, text: str) -> dict[float, dict[str, str]]:
    try:
        return {float(start): dict(tables) for start, tables in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path.name}: is not a table of windows ({error})") from error


def _requests(
    path: Path, client: _Client, within: tuple[float, float], faster: float, rng: random.Random
) -> Iterator[TraceRequest]:
    for window in client.windows:
        now, end_s = max(window.start_s, within[0]), min(window.end_s, within[1])
        now += window.gap(rng) / faster * rng.random()  # the process was under way before the window began
        while now < end_s:
            prompt, output = (_length(path, client, name, now).draw(rng) for name in ("input_tokens", "output_tokens"))
            yield TraceRequest(now, prompt, output, tenant=client.name)
            now += window.gap(rng) / faster


def _length(path: Path, client: _Client, name: str, now: float) -> _Lengths:
    """The distribution that held at ``now``; where there is none for those hours, the nearest."""
    for start in sorted(client.dataset, key=lambda s: (s > now, abs(now - s))):
        found = client.parsed.get((start, name))
        if found is None:
            found = client.parsed[start, name] = _table(path, client, name, client.dataset[start].get(name, "{}"))
        if found.values:
            return found
    raise ConfigError(f"{path.name}, {client.name}: {name} has no distribution in any window")


def _table(path: Path, client: _Client, name: str, text: str) -> _Lengths:
    try:
        table: dict[Any, Any] = ast.literal_eval(text)
        values = [int(value) for value in table]
        weights = [float(weight) for weight in table.values()]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ValueError("a weight is not a number of at least 0")
    except (ValueError, SyntaxError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path.name}, {client.name}, {name}: is not a table of lengths ({error})") from error
    return _Lengths(values, list(accumulate(weights)))
