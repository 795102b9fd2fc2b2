"""Traces of many formats, read into one.

================  ==============================================================================================
``azure``         CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``
``mooncake``      JSON lines with ``timestamp``, ``input_length``, ``output_length``, ``hash_ids``
``servegen``      archive of clients' rates and length distributions (``.tgz``)
``lengths``       CSV of lengths without times; arrivals from a process
``vllm-run``      JSON lines with ``input_toks``, ``output_toks``, ``arrival_time``
``journal``       what ``tokenmill serve --journal`` wrote
================  ==============================================================================================
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tokenmill.core.errors import ConfigError
from tokenmill.perf.simulate.traces import azure, journals, lengths, mooncake, servegen, vllm_runs
from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.traces.lengths import synthetic
from tokenmill.perf.simulate.workload import Trace

FORMATS: Mapping[str, Callable[[Path, Draw], Trace]] = {
    "azure": azure.read,
    "mooncake": mooncake.read,
    "servegen": servegen.read,
    "lengths": lengths.read,
    "vllm-run": vllm_runs.read,
    "journal": journals.read,
}
_MARKS = (('"journal"', "journal"), ('"hash_ids"', "mooncake"), ('"input_toks"', "vllm-run"))

__all__ = ["FORMATS", "Draw", "detect", "read_trace", "synthetic"]


def read_trace(path: Path, draw: Draw, form: str | None = None) -> Trace:
    """The trace in ``path``; its format is seen from the content if it is not given.

    Raises:
        ConfigError: the file cannot be read, its format is not known, or a line of it is wrong: says where.
    """
    form = form or detect(path)
    if form not in FORMATS:
        raise ConfigError(f"trace format {form!r} is unknown: there are {', '.join(FORMATS)}")
    return FORMATS[form](path, draw)


def detect(path: Path) -> str:
    """The format of a trace, from its first lines."""
    try:
        if tarfile.is_tarfile(path):
            return "servegen"
        with path.open(encoding="utf-8") as file:
            heading, first = file.readline(), file.readline()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is neither text nor an archive of clients") from error
    for mark, form in _MARKS:
        if mark in heading:
            return form
    names = heading.strip().split(",")
    if set(azure.COLUMNS) <= set(names):
        moment = first.split(",")[names.index("TIMESTAMP")] if first.count(",") >= names.index("TIMESTAMP") else ""
        return "azure" if any(letter.isdigit() for letter in moment) else "lengths"
    if any(set(pair) <= set(names) for pair in lengths.COLUMNS):
        return "lengths"
    raise ConfigError(f"{path}: is no trace that is known here; say which with --format ({', '.join(FORMATS)})")
