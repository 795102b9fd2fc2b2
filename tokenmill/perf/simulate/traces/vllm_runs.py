"""Requests as another engine's client recorded them: lengths and arrival, one JSON object a line.

``input_toks``, ``output_toks``, ``arrival_time`` (seconds); what the engine made of them is not read here.
"""

from __future__ import annotations

from pathlib import Path

from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.traces.lines import json_lines
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace


def read(path: Path, draw: Draw) -> Trace:
    """The whole file."""
    requests = [
        TraceRequest(line.number_of("arrival_time"), line.count("input_toks"), line.count("output_toks"))
        for line in json_lines(path)
    ]
    return make_trace(path.name, "vllm-run", requests)
