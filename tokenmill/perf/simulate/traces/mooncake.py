"""Mooncake's traces (Qin et al., FAST 2025): lengths, and hashes of the prompt's blocks of 512 tokens.

One JSON object a line: ``timestamp`` (milliseconds), ``input_length``, ``output_length``, ``hash_ids``. Equal ids mean
equal content from the prompt's start, so the ids are the prompt's pieces.
"""

from __future__ import annotations

from pathlib import Path

from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.traces.lines import Line, json_lines
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace

BLOCK_TOKENS = 512


def read(path: Path, draw: Draw) -> Trace:
    """The whole file."""
    requests = [
        TraceRequest(
            line.number_of("timestamp") / 1e3,
            line.count("input_length"),
            line.count("output_length"),
            _hashes(line),
            BLOCK_TOKENS,
        )
        for line in json_lines(path)
    ]
    return make_trace(path.name, "mooncake", requests)


def _hashes(line: Line) -> tuple[int, ...]:
    ids = line.value("hash_ids")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise line.error("hash_ids", "must be a list of whole numbers")
    return tuple(ids)
