"""Azure's LLM inference traces (Splitwise, Patel et al., ISCA 2024): a moment and two lengths a line.

``TIMESTAMP,ContextTokens,GeneratedTokens``, CRLF, seven digits of fractions of a second.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.traces.lines import csv_lines
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path, draw: Draw) -> Trace:
    """The whole file."""
    requests: list[TraceRequest] = []
    first: datetime | None = None
    for line in csv_lines(path, *COLUMNS):
        text = line.value("TIMESTAMP")
        try:
            moment = datetime.fromisoformat(text)
            first = first or moment
            arrival_s = (moment - first).total_seconds()
        except (ValueError, TypeError) as error:
            raise line.error("TIMESTAMP", f"must be a date and time, not {text!r}") from error
        requests.append(TraceRequest(arrival_s, line.count("ContextTokens"), line.count("GeneratedTokens")))
    return make_trace(path.name, "azure", requests)
