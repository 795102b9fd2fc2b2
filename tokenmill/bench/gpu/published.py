"""The best that was published for a chip: Llama 3.1 8B, all requests queued at once, output tokens a second.

Nobody published the very lengths that are measured here (1,024 in, 256 out), so they are interpolated between the rows
of one chip, precision, engine and version. A request takes its share of a saturated engine's time: so much per prompt
token and per output token, and so much per pair of tokens that attend to each other,

    seconds per request = a · in + b · out + c · out · (in + out / 2) + d · in² / 2

Fitted by relative least squares to TensorRT-LLM's rows for one H200 in FP8 (10 rows of version 1.0, 9 of 0.17; 128 to
20,000 in, 128 to 4,096 out) it is within 2.5 % of every row. Where the catalogue of published measurements lies beside
the project the fit is made from it, else the outcome that it had stands here.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenmill.bench.machine import ROOT

CATALOGUE = ROOT.parent / "shared" / "data" / "perf" / "published_perf.csv"
MIN_ROWS = 6
"""Of four unknowns."""


@dataclass(frozen=True, slots=True)
class Published:
    """What others reached."""

    output_tokens_per_s: float
    source: str


KNOWN = {
    ("h200", "fp8"): Published(
        11173.0,
        "TensorRT-LLM 0.17 on one H200-SXM-141GB in FP8, interpolated between 9 published lengths",
    ),
    ("h100", "fp8"): Published(
        10132.0,
        "TensorRT-LLM 1.0 on one H100-SXM-80GB in FP8, interpolated between 10 published lengths",
    ),
}
"""(device, precision) → the best for 1,024 in and 256 out, of TensorRT-LLM's perf-overview.md (@258c7540, @00f37686).
There is none in BF16 for either."""
LENGTHS = (1024, 256)


def best(device: str, precision: str, catalogue: Path = CATALOGUE) -> Published | None:
    """The best for ``LENGTHS`` on a device (``h200``), or None where nobody published enough."""
    if not catalogue.exists():
        return KNOWN.get((device, precision))
    groups: dict[tuple[str, str, str], list[tuple[float, float, float]]] = defaultdict(list)
    with catalogue.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if _counts(row, device, precision):
                key = (row["engine"], row["version"], row["hardware"])
                groups[key].append((float(row["input_len"]), float(row["output_len"]), float(row["value"])))
    found = [
        Published(
            interpolate(rows, *LENGTHS),
            f"{engine} {version} on one {hardware} in {precision.upper()}, "
            f"interpolated between {len(rows)} published lengths",
        )
        for (engine, version, hardware), rows in groups.items()
        if len(rows) >= MIN_ROWS
    ]
    return max(found, key=lambda one: one.output_tokens_per_s, default=None)


def _counts(row: dict[str, str], device: str, precision: str) -> bool:
    model = "".join(row["model"].lower().replace("v3.1", "3.1").split())
    return (
        row["metric"] == "output_throughput"
        and row["batch_or_concurrency"] == "max"
        and row["n_devices"] == "1"
        and row["precision"] == precision
        and model.startswith("llama3.18b")
        and device in row["hardware"].lower().split("-")
    )


def interpolate(rows: Sequence[tuple[float, float, float]], prompt: float, output: float) -> float:
    """Output tokens a second at these lengths, from rows of (input, output, output tokens a second)."""
    features = np.array([_features(row[0], row[1]) for row in rows])
    seconds = np.array([row[1] / row[2] for row in rows])
    found, *_ = np.linalg.lstsq(features / seconds[:, None], np.ones(len(rows)), rcond=None)
    return float(output / (np.array(_features(prompt, output)) @ found))


def _features(prompt: float, output: float) -> Iterable[float]:
    return prompt, output, output * (prompt + output / 2), prompt * prompt / 2
