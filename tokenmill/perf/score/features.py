"""What a residual may depend on: names with numbers, by which corrections are looked up and fitted.

Physics leaves a rest that belongs to something: an engine's version with its kernels, how a table's runs were set up,
how an engine treats a model. Each feature is a name for such a thing (value 1), or for its slope with the logarithm
of batch, lengths or parallelism (value: that logarithm, centred). Corrections are small coefficients on them, shrunk
towards zero, so that only what many rows agree on survives; a row of something never seen finds none of its names and
keeps the physics.
"""

from __future__ import annotations

import math
import re
from itertools import combinations

from tokenmill.perf.calibrate.effects import model_class
from tokenmill.perf.score.rows import Row
from tokenmill.perf.score.scenario import Scenario

_KINDS = {
    "tpot": "token", "tpot_flagged": "token", "tpot_disaggregated": "token-split",
    "tpot_disaggregated_unknown_workers": "token-open", "ttft": "first", "ttft_flagged": "first",
    "ttft_disaggregated": "first-split", "ttft_disaggregated_unknown_workers": "first-open",
    "serving_throughput": "token",
}  # fmt: skip


def features_of(row: Row, scenario: Scenario, *, device: bool = True) -> dict[str, float]:
    """Names and values. ``device=False`` leaves out what only this accelerator's own rows could have taught."""
    kind = _KINDS.get(scenario.group, scenario.group)
    d = scenario.deployment
    layout = d.layout
    version = row.release.lower()[:48]
    facts = {
        "engine": scenario.engine,
        "version": f"{scenario.engine} {version}",
        "device": d.hardware.name,
        "family": d.hardware.family,
        "minor": f"{scenario.engine} {_minor(row.release)}",
        "model": f"{d.shape.num_parameters / 1e9:.4g}B",
        "class": model_class(d.shape),
        "precision": d.formats.of_experts.name,
        "layout": str(layout),
        "lengths": f"{scenario.input_len:g}/{scenario.output_len:g}",
        "load": "number" if row.batch is not None else row.load,
        "metric": row.metric,
        "campaign": row.campaign,
        "source": row.source.split(" ")[0].split("/")[0],
    }
    if not device:
        del facts["device"]
    found = {f"{kind}": 1.0}
    for first in facts:
        found[f"{kind}|{first}={facts[first]}"] = 1.0
    for first, second in combinations(facts, 2):
        if (first, second) in _PAIRS:
            found[f"{kind}|{first}={facts[first]}|{second}={facts[second]}"] = 1.0
    for names in _TRIPLES:
        if all(name in facts for name in names):
            found[kind + "".join(f"|{name}={facts[name]}" for name in names)] = 1.0
    for slope, value in _slopes(scenario).items():
        found[f"{kind}*{slope}"] = value
        for owner in _SLOPED:
            if all(name in facts for name in owner):
                found[kind + "".join(f"|{name}={facts[name]}" for name in owner) + f"*{slope}"] = value
    return found


def _minor(release: str) -> str:
    """The first two numbers of a version; of what has none, its first word."""
    found = re.match(r"\D*(\d+[.-]\d+)", release)
    return found[1] if found else release.lower().split(" ")[0][:12]


_PAIRS = {
    ("engine", "device"), ("engine", "family"), ("engine", "model"), ("engine", "class"), ("engine", "precision"),
    ("engine", "layout"), ("engine", "lengths"), ("version", "device"), ("version", "model"), ("version", "lengths"),
    ("version", "precision"), ("device", "model"), ("device", "precision"), ("device", "layout"), ("family", "model"),
    ("family", "precision"), ("family", "class"), ("model", "precision"), ("model", "layout"), ("class", "lengths"),
    ("model", "lengths"), ("precision", "lengths"), ("layout", "lengths"), ("source", "load"), ("source", "metric"),
    ("minor", "model"), ("minor", "device"), ("minor", "precision"), ("minor", "class"), ("engine", "campaign"),
    ("model", "campaign"), ("device", "campaign"), ("campaign", "source"), ("class", "layout"), ("device", "lengths"),
    ("model", "load"), ("device", "load"), ("engine", "metric"), ("version", "family"),
}  # fmt: skip
_TRIPLES = (
    ("engine", "device", "model"), ("minor", "device", "model"), ("minor", "model", "precision"),
    ("engine", "model", "precision"), ("engine", "device", "precision"), ("device", "model", "precision"),
    ("engine", "model", "layout"), ("engine", "device", "model", "precision"),
    ("engine", "device", "model", "precision", "layout"), ("version", "device", "model", "precision"),
    ("version", "family", "precision"), ("version", "model", "precision"), ("version", "device", "model"),
    ("version", "class", "precision"),
    ("version", "model", "lengths"), ("engine", "device", "model", "precision", "lengths"),
    ("version", "device", "model", "precision", "layout"),
)  # fmt: skip
_SLOPED = (
    ("engine",), ("version",), ("device",), ("family",), ("model",), ("class",), ("precision",), ("layout",),
    ("lengths",), ("engine", "model"), ("engine", "device"), ("engine", "class"), ("campaign",),
    ("engine", "device", "model", "precision"), ("version", "model", "precision"),
)  # fmt: skip


def _slopes(scenario: Scenario) -> dict[str, float]:
    layout = scenario.deployment.layout
    batch = math.log(max(scenario.batch, 1.0) / 32) / 2
    inputs, outputs = (
        math.log(max(scenario.input_len, 1.0) / 1500) / 2,
        math.log(max(scenario.output_len, 1.0) / 800) / 2,
    )
    devices = math.log(layout.num_devices / 4)
    found = {"batch": batch, "batch2": batch * batch, "input": inputs, "output": outputs, "devices": devices}
    found |= {"batch input": batch * inputs, "batch devices": batch * devices, "input output": inputs * outputs}
    if scenario.waiting > 0:
        found["waiting"] = math.log1p(scenario.waiting)
        found["waits"] = 1.0
    return found
