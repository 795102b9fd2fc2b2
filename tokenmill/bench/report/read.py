"""Result files, checked before anything is drawn: what a file is, and what it would need to be drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.perf.result import LATENCIES, RUN_KINDS, missing_in, runs_of

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One file."""

    path: Path
    kind: str
    data: Data

    @property
    def label(self) -> str:
        """How pictures call it."""
        return self.path.stem

    @property
    def runs(self) -> list[Data]:
        return runs_of(self.data)


def read_result(path: Path) -> Result:
    """Read one result.

    Raises:
        ConfigError: names the file and what is wrong with it or missing.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no result file: {error}") from error
    kind = (data.get("bench") or data.get("kind") or _bare_kind(data)) if isinstance(data, dict) else None
    if not isinstance(kind, str):
        raise ConfigError(f'{path} is no result file: it lacks "bench", which says what was measured')
    if kind not in CHECKS:
        raise ConfigError(f"{path}: there is no picture of {kind!r} results; there are of {', '.join(CHECKS)}")
    if kind == "serve" and "results" in data:
        data = _from_first_form(data)
    try:
        missing = CHECKS[kind](data)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ConfigError(f"{path}: not the form of a {kind} result: {error}") from error
    if missing:
        raise ConfigError(f"{path}: a {kind} result without {', '.join(missing)}")
    return Result(path, kind, data)


def _finite(text: str) -> float:
    """NaN and infinity, also written as 1e999, are no figures."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a number")
    return number


def _bare_kind(data: Data) -> str | None:
    """``tokenmill score --json`` prints its object as it is."""
    return "score" if {"groups", "supported"} <= set(data) else None


def _lacking(data: Data, *names: str) -> list[str]:
    return [name for name in names if name not in data]


def _check_runs(data: Data) -> list[str]:
    runs = runs_of(data)
    if not runs:
        return ["points"]
    several = len(runs) > 1 or "points" in data
    return _lacking(data, "model") + [
        f"points[{index}].{name}" if several else name for index, run in enumerate(runs) for name in missing_in(run)
    ]


def _check_step(data: Data) -> list[str]:
    names = ("batch", "milliseconds", "bandwidth_share", "host_share", "kernel_share")
    rows = data.get("batches", ())
    return _lacking(data, "model", "precision", "batches") + [
        f"batches[{index}].{name}" for index, row in enumerate(rows) for name in _lacking(row, *names)
    ]


def _check_kernels(data: Data) -> list[str]:
    names = ("kernel", "size", "microseconds", "gigabytes_per_s", "gigaops_per_s", "bandwidth_gigabytes_per_s", "share")
    ceilings = data.get("ceilings", {})
    return (
        _lacking(data, "ceilings", "kernels")
        + [f"ceilings.{name}" for name in _lacking(ceilings, "bf16_gigaops_per_s", "int8_gigaops_per_s")]
        + [
            f"kernels[{index}].{name}"
            for index, row in enumerate(data.get("kernels", ()))
            for name in _lacking(row, *names)
        ]
    )


def _check_score(data: Data) -> list[str]:
    groups = data.get("groups", {})
    return _lacking(data, "groups") + [
        f"groups.{name}.{field}"
        for name, group in groups.items()
        for field in _lacking(group, "n", "median", "mean", "p90")
    ]


def _from_first_form(data: Data) -> dict[str, Any]:
    """Results of ``bench serve`` before there was one form: everything flat in ``results``."""
    found = data["results"]
    rates = ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s")
    return {
        **{name: value for name, value in data.items() if name != "results"},
        "model": data["server"]["model"],
        "rate_per_s": data["load"]["rate_per_s"],
        "requests": {"sent": found["requests"], "completed": found["completed"], "failed": found["failed"]},
        "tokens": {name: found[f"{name}_tokens"] for name in ("cached", "output")} | {"input": found["prompt_tokens"]},
        "window": {"name": "measured", "begin_s": 0.0, "end_s": found["duration_s"], "duration_s": found["duration_s"]},
        "throughput": {name: found[name] for name in rates},
        "latency": {name: found[name] for name in LATENCIES},
        "slo": found["slo"],
        "goodput": {
            "requests_per_s": found["goodput_per_s"],
            "share": found["goodput_per_s"] * found["duration_s"] / found["requests"],
        },
    }


CHECKS: Mapping[str, Callable[[Data], list[str]]] = {
    **dict.fromkeys(RUN_KINDS, _check_runs),
    "step": _check_step,
    "kernels": _check_kernels,
    "score": _check_score,
}
KINDS = tuple(CHECKS)
