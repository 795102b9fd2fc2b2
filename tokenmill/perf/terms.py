"""A step's costs in seconds at the datasheet's figures, sorted by what could bound them.

The roofline (Williams et al. 2009) says that an operation takes at least as long as its arithmetic at the device's
peak, and at least as long as its bytes at the device's bandwidth. Operations that behave alike are added up into a
*group* (products with matrices, experts, attention over prompts, attention of single tokens, everything elementwise);
each has a memory term and a compute term. Beside them stand what no roofline shows: messages (bandwidth and latency
apart), kernel launches, and the host's work per step and per sequence.

``Terms`` holds these numbers, untouched by any efficiency: they follow from ``perf/costs`` and ``perf/hardware`` alone.
``perf/roofline`` multiplies each by its calibrated factor and adds up. All terms but those of experts (whose weights
are touched by chance) and of messages (whose algorithm changes with size) are affine in a handful of sums over the
rows of a step, so ``Profile`` finds their coefficients once, by asking ``step_ops``, and then needs microseconds per
step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from tokenmill.perf.costs import Formats, Layout, Message, Op, Work, step_ops
from tokenmill.perf.costs.collectives import Algorithm, num_steps, sent_bytes
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.shape import Layers, ModelShape

GROUPS = ("linear", "experts", "prefill", "decode", "other")
"""Each has a ``.memory`` and a ``.compute`` term."""

NAMES = (
    *(f"{group}.{side}" for group in GROUPS for side in ("memory", "compute")),
    "message.latency", "message.bandwidth", "launch", "host.step", "host.row", "host.request",
)  # fmt: skip
NUM_PAIRS = len(GROUPS)
LATENCY, BANDWIDTH, LAUNCH, STEP, ROW, REQUEST = range(2 * NUM_PAIRS, 2 * NUM_PAIRS + 6)

_GROUP_OF = {
    "linear": 0,
    "experts": 1,
    "prefill attention": 2,
    "decode attention": 3,
    "memory": 4,
    "sampling": 4,
}

LAUNCH_S = 1e-6
STEP_S, ROW_S, REQUEST_S = 1e-3, 1e-6, 1e-2
"""Units of what has no datasheet: a launch, the host's work per step, per sequence in it, and per request on its way in
and out (which adds to the first token's latency, not to any step)."""

MESSAGE_START_S = 4e-6
"""Launching one collective."""
MESSAGE_STEP_S = {True: 1e-6, False: 5e-6}
"""One dependent exchange: over a switched or direct fabric between devices, or over the host's bus."""
INTERNODE_STEP_S = 10e-6
FABRIC_BYTES_PER_S = 150e9
"""A link from here on is a fabric of its own, not the host's bus."""

HALF_EFFICIENT_PROMPT = 600.0
"""Tokens of a prompt at which attention reaches half of its best share of peak (measured kernels, docs)."""

_ALGORITHMS: tuple[Algorithm, ...] = ("one_shot", "ring", "tree")


@dataclass(frozen=True, slots=True)
class Deployment:
    """One engine instance: what it runs, how, on what."""

    shape: ModelShape
    formats: Formats
    layout: Layout
    hardware: Hardware

    def terms(self, work: Work) -> tuple[float, ...]:
        """The terms of one step, in the order of ``NAMES``, in seconds at the datasheet's figures."""
        ops = step_ops(compact(self.shape), self.formats, self.layout, work)
        return (*sum_ops(ops, self.hardware), STEP_S, work.num_rows / self.layout.dp * ROW_S, 0.0)


@lru_cache(maxsize=256)
def compact(shape: ModelShape) -> ModelShape:
    """Equal layers counted together wherever they stand: a step's sums do not know their order."""
    counts: dict[Layers, int] = {}
    for run in shape.layers:
        key = replace(run, count=1)
        counts[key] = counts.get(key, 0) + run.count
    if len(counts) == len(shape.layers):
        return shape
    return replace(shape, layers=tuple(replace(run, count=count) for run, count in counts.items()))


def sum_ops(ops: Iterable[Op], hardware: Hardware) -> list[float]:
    """All terms but the host's."""
    sums = [0.0] * STEP
    for op in ops:
        if op.message is not None:
            latency, bandwidth = message_seconds(op.message, hardware)
            sums[LATENCY] += op.count * latency
            sums[BANDWIDTH] += op.count * bandwidth
            continue
        group = _GROUP_OF[op.kind]
        sums[2 * group] += op.num_bytes / hardware.memory_bytes_per_s
        if op.flops:
            seconds = op.flops / hardware.peak(op.arithmetic)
            if group == 2:
                seconds *= 1 + HALF_EFFICIENT_PROMPT / max(op.rows, 1.0)
            sums[2 * group + 1] += seconds
        sums[LAUNCH] += op.count * LAUNCH_S
    return sums


def message_seconds(message: Message, hardware: Hardware) -> tuple[float, float]:
    """(latency, bandwidth) of one call with the algorithm that is quickest at its size."""
    link = hardware.link
    inside = link is not None and message.ranks <= max(link.domain, hardware.devices_per_node)
    if link is not None and inside:
        speed, step = link.bytes_per_s, MESSAGE_STEP_S[link.bytes_per_s >= FABRIC_BYTES_PER_S]
    else:
        speed = hardware.internode_bytes_per_s or hardware.host_link_bytes_per_s or 25e9
        step = INTERNODE_STEP_S
    best = (float("inf"), 0.0)
    for algorithm in _ALGORITHMS:
        found = MESSAGE_START_S + num_steps(message, algorithm) * step, sent_bytes(message, algorithm) / speed
        if sum(found) < sum(best):
            best = found
    return best
