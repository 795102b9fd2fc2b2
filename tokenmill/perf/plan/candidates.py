"""Which ways there are to run a model: hardware × precision × layout × speculation, as far as they can exist at all.

* **Precision.** Widest first: 16 bits; 8 and 4 bits in the arithmetic that the device has, weights only where it has
  none. A checkpoint that is stored narrow is never widened. Narrow formats change answers; ``--precision`` restricts
  them.
* **Layout.** Tensor, data and expert parallelism stay within a node (or a rack that one fabric joins); pipeline
  stages may stand on several. Powers of two. What ``Layout.check`` refuses does not exist.
* **Memory.** Weights, buffers of the largest step, what contexts and graphs take, and at least one sequence at its full
  length; the rest is room for more of them. Formulas of ``perf/costs``, the rule of ``perf/steady``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tokenmill.core.errors import ConfigError
from tokenmill.perf import steady
from tokenmill.perf.calibrate import Calibration, Effects, calibration_for
from tokenmill.perf.costs import Format, Layout, format_named, reserved_bytes, served_formats, weight_bytes
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.shape import ModelShape
from tokenmill.perf.terms import Deployment, compact

MEMORY_SHARE = 0.9
"""Of a device's memory, what an engine takes (vLLM's default)."""
MAX_TENSOR_RANKS = 32
MAX_STAGES = 8
MAX_DEVICES = 128
"""Of one instance."""

DRAFT_LENGTH = 4
DRAFT_COST = 0.05
"""A draft step's time, and its weights, over the model's."""
ACCEPTANCE = {"low": 0.5, "mean": 0.7, "high": 0.8}
"""Of each draft token. Assumed: it depends on the text, and nobody has measured it for this model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One instance of the model, and its memory."""

    deployment: Deployment
    precision: str
    engine: str
    calibration: Calibration
    drafts: int = 0
    """Tokens drafted ahead of each verification; 0: no speculation."""
    _known: dict[tuple[float, int], int] = field(default_factory=dict, repr=False, compare=False)
    """Of ``places``: a search asks the same again and again."""

    @property
    def hardware(self) -> Hardware:
        return self.deployment.hardware

    @property
    def layout(self) -> Layout:
        return self.deployment.layout

    @property
    def num_devices(self) -> int:
        return self.deployment.layout.num_devices

    @property
    def weight_bytes(self) -> float:
        """On the fullest device, the draft's included."""
        own = weight_bytes(self.deployment.shape, self.deployment.formats, self.layout)
        return own * (1 + DRAFT_COST) if self.drafts else own

    def places(self, tokens: float, step_tokens: int) -> int:
        """Sequences of ``tokens`` tokens that fit at once beside a step of ``step_tokens`` tokens."""
        key = (tokens, step_tokens)
        if key not in self._known:
            self._known[key] = self._places(tokens, step_tokens)
        return self._known[key]

    def _places(self, tokens: float, step_tokens: int) -> int:
        found = self.deployment
        reserved = reserved_bytes(found.shape, found.formats, found.layout, step_tokens)
        if self.drafts:
            reserved += self.weight_bytes * DRAFT_COST / (1 + DRAFT_COST)
        rule = steady.MemoryRule(MEMORY_SHARE, True, reserved)
        return steady.capacity(self.deployment, rule, tokens)

    def __str__(self) -> str:
        drafts = f", {self.drafts} drafts" if self.drafts else ""
        return f"{self.num_devices} × {self.hardware.name}, {spell_layout(self.layout)}, {self.precision}{drafts}"


@dataclass(slots=True)
class Family:
    """The candidates of one hardware and precision; and why those that are missing cannot be."""

    hardware: Hardware
    precision: str
    candidates: list[Candidate] = field(default_factory=list)
    refused: list[tuple[Layout, str]] = field(default_factory=list)


def families(
    shape: ModelShape,
    hardware: Iterable[Hardware],
    precisions: tuple[str, ...] | None,
    effects: Effects | None,
    need: tuple[float, int],
    layout: Layout | None = None,
) -> Iterator[Family]:
    """All candidates, by hardware and precision.

    Args:
        precisions: names of ``formats_named``; None: ``precisions_of`` each device.
        need: they hold at least one sequence of so many tokens, beside a step of so many.
        layout: only this one.
    """
    shape = compact(shape)
    for device in hardware:
        engine = engine_of(device)
        for precision in precisions or precisions_of(shape, device):
            formats = served_formats(precision, None, engine, shape.head_dim, device.kind)
            calibration = calibration_for(device, engine, shape=shape, formats=formats, effects=effects)
            family = Family(device, precision)
            for one in [layout] if layout else layouts_of(shape, device):
                refusal = _refusal(one, shape) if layout is None else _not_there(one, device)
                if refusal:
                    family.refused.append((one, refusal))
                    continue
                deployment = Deployment(shape, formats, one, device)
                for drafts in (0, DRAFT_LENGTH):
                    found = Candidate(deployment, precision, engine, calibration, drafts)
                    if found.places(*need) >= 1:
                        family.candidates.append(found)
                    elif not drafts:
                        family.refused.append((one, _too_small(found)))
            yield family


def _refusal(layout: Layout, shape: ModelShape) -> str | None:
    try:
        layout.check(shape)
    except ConfigError as error:
        return error.message
    return None


def _not_there(layout: Layout, device: Hardware) -> str | None:
    ranks, node = layout.tp * layout.dp, node_size(device)
    if ranks > node or not _stages(ranks, layout.pp, node, device):
        return f"{layout} needs more than the {node} devices that are joined"
    return None


def _too_small(candidate: Candidate) -> str:
    there = candidate.hardware.memory_bytes * MEMORY_SHARE
    needed = candidate.weight_bytes
    if needed > there:
        return f"{needed / 1e9:.1f} GB of weights on each device of {there / 1e9:.1f} GB usable"
    return f"no room for one sequence beside {needed / 1e9:.1f} GB of weights in {there / 1e9:.1f} GB usable"


def engine_of(device: Hardware) -> str:
    """Whose efficiencies a prediction takes: ours where ours runs, else the usual engine of such a device."""
    return {"cpu": "tokenmill", "soc": "llama.cpp"}.get(device.kind, "vllm")


def precisions_of(shape: ModelShape, device: Hardware) -> tuple[str, ...]:
    """Names of ``formats_named``, widest first."""
    eight = next((name for name in ("fp8", "int8") if name in device.peaks), "int8wo")
    four = ("nvfp4" if device.vendor == "nvidia" else "mxfp4") if "fp4" in device.peaks else "int4"
    stored = _stored(shape)
    usual = (format_named("bf16"), format_named(eight), format_named(four))
    if stored is None:
        return tuple(one.name for one in usual)
    return (stored.name, *(one.name for one in usual if one.bits < stored.bits and one.name != stored.name))


_SCHEMES = {"fp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "awq": "int4", "gptq": "int4", "int8": "int8"}


def _stored(shape: ModelShape) -> Format | None:
    """The format of a checkpoint that is quantised; None: plain, or in a way that is not known."""
    scheme = shape.quantization or ""
    return next((format_named(name) for word, name in _SCHEMES.items() if word in scheme), None)


def layouts_of(shape: ModelShape, device: Hardware) -> Iterator[Layout]:
    """Smallest first; whether the model can be cut so is not asked here."""
    node = node_size(device)
    ranks = [n for n in _powers(MAX_TENSOR_RANKS) if n <= node]
    found = [Layout(tp=tp, pp=pp) for tp in ranks for pp in _powers(MAX_STAGES) if _stages(tp, pp, node, device)]
    if shape.has_experts:
        found += [Layout(tp=tp, ep=tp) for tp in ranks if tp > 1]
        found += [Layout(tp=n // dp, dp=dp, ep=n) for n in ranks for dp in (n, n // 2) if dp > 1]
    yield from sorted(set(found), key=lambda one: (one.num_devices, one.pp, one.dp, one.ep))


def _stages(tp: int, pp: int, node: int, device: Hardware) -> bool:
    """Stages fill a node before they go on to the next, and need some way to it."""
    if tp * pp <= node:
        return True
    joined = device.internode_bytes_per_s is not None or device.host_link_bytes_per_s is not None
    return joined and tp == node and tp * pp <= MAX_DEVICES


def node_size(device: Hardware) -> int:
    """How many devices exchange messages without leaving the node, or the rack that one fabric joins."""
    joined = device.link.domain if device.link else 1
    return max(device.devices_per_node, min(joined, 64)) if device.link else 1


def _powers(most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if 1 << i <= most]


def spell_layout(layout: Layout) -> str:
    """``tp4 pp2``; ``one device``."""
    parts = [f"{name}{getattr(layout, name)}" for name in ("tp", "pp", "dp", "ep") if getattr(layout, name) > 1]
    return " ".join(parts) or "one device"
