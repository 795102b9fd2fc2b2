"""Pairs of lengths without times: rows of a CSV, or a description, with arrivals from a process.

Known columns: ``ContextTokens,GeneratedTokens`` and ``num_prefill_tokens,num_decode_tokens``. Fewer requests than rows
are drawn without putting back; more, with.
"""

from __future__ import annotations

from pathlib import Path

from tokenmill.core.errors import ConfigError
from tokenmill.perf.simulate.arrivals import arrival_times
from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.traces.lines import csv_lines
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace

COLUMNS = (("ContextTokens", "GeneratedTokens"), ("num_prefill_tokens", "num_decode_tokens"))


def read(path: Path, draw: Draw) -> Trace:
    """``draw.requests`` rows (all, if not given) at ``draw.rate``."""
    pairs: list[tuple[int, int]] = []
    names: tuple[str, str] | None = None
    for line in csv_lines(path):
        names = names or next((pair for pair in COLUMNS if set(pair) <= set(line.fields)), None)
        if names is None:
            raise ConfigError(f"{path.name}, line 1: the heading lacks {' and '.join(COLUMNS[0])}")
        pairs.append((line.count(names[0]), line.count(names[1])))
    whole = [pair for pair in pairs if pair[0] and pair[1]]
    if not whole:
        raise ConfigError(f"{path.name}: holds no row with at least one prompt token and one output token")
    count, rng = draw.requests or len(whole), draw.rng("lengths")
    drawn = rng.sample(whole, count) if count <= len(whole) else rng.choices(whole, k=count)
    return _timed(path.name, "lengths", drawn, draw)


def synthetic(prompt: tuple[int, int], output: tuple[int, int], draw: Draw) -> Trace:
    """Lengths drawn uniformly from ranges; ``draw.requests`` of them (1000, if not given)."""
    rng = draw.rng("lengths")
    pairs = [(rng.randint(*prompt), rng.randint(*output)) for _ in range(draw.requests or 1000)]
    return _timed("synthetic", "synthetic", pairs, draw)


def _timed(name: str, form: str, pairs: list[tuple[int, int]], draw: Draw) -> Trace:
    times = arrival_times(draw.arrivals, len(pairs), draw.rate, draw.rng("arrivals"))
    return make_trace(name, form, [TraceRequest(t, *pair) for t, pair in zip(times, pairs, strict=True)])
