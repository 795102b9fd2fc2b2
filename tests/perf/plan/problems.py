"""Small problems whose answers a calculator finds."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.perf.calibrate import Effects
from tokenmill.perf.costs import Layout
from tokenmill.perf.hardware import Hardware, Link
from tokenmill.perf.plan import Problem, parse_slo, parse_workload
from tokenmill.perf.plan.candidates import Candidate, families
from tokenmill.perf.shape import FeedForward, GroupedAttention, Layers, ModelShape

PLAIN = Effects({}, {"": 0.1})
"""The datasheet, with an interval of a factor 1.18 either way."""

DEVICE = Hardware("Plain", "gpu", "nvidia", "none", 85_899_345_920, 2e12, {"fp32": 20e12, "bf16": 300e12}, tdp_w=400.0)
PAIR = replace(
    DEVICE, name="Pair", link=Link("NVLink", 300e9, 2), devices_per_node=2, internode_bytes_per_s=25e9, tdp_w=500.0
)


def decoder(layers: int = 32, *, inner: int = 11008, kv_heads: int = 32) -> ModelShape:
    """7e9 parameters, as it stands."""
    mixer = GroupedAttention(32, kv_heads, 128, 128)
    return ModelShape("seven", 4096, 32000, (Layers(layers, mixer, FeedForward(inner)),))


def problem(slo: str = "", workload: str = "input=500,output=200,rate=5", **changes: object) -> Problem:
    known: dict[str, object] = {"hardware": (DEVICE,), "precisions": ("bf16",), "effects": PLAIN}
    return Problem(decoder(), parse_workload(workload), parse_slo(slo), **{**known, **changes})  # type: ignore[arg-type]


def candidates(device: Hardware = DEVICE, precision: str = "bf16", layout: Layout | None = None) -> list[Candidate]:
    found = families(decoder(), [device], (precision,), PLAIN, (700.0, 512), layout)
    return [candidate for family in found for candidate in family.candidates]
