"""How numbers are stored, and what arithmetic multiplies them.

A format's bits include its scales: 4-bit weights with a 16-bit scale per group of 128 take 4.125 bits, NVFP4 with an
8-bit scale per 16 takes 4.5, MXFP4 with one per 32 takes 4.25. Weight-only formats are multiplied in bf16; W8A8, FP8
and FP4 in their own arithmetic, if the device has it (``perf/roofline`` falls back where it has not).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from tokenmill.core.errors import ConfigError
from tokenmill.core.precision import BITS, GROUPS, Precision

SCALE_BITS = 16
"""A quantisation scale of this engine's CPU kernels."""


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    bits: float
    """Per element, scales included."""
    arithmetic: str
    """A key of the hardware's peaks: ``fp32``, ``bf16``, ``fp8``, ``int8``, ``fp4``."""

    @property
    def num_bytes(self) -> float:
        return self.bits / 8


_FORMATS = {
    found.name: found
    for found in (
        Format("fp32", 32, "fp32"),
        Format("bf16", 16, "bf16"),
        Format("fp16", 16, "bf16"),
        Format("fp8", 8, "fp8"),
        Format("int8", 8, "int8"),
        Format("int8wo", 8, "bf16"),
        Format("int4", 4.125, "bf16"),
        Format("nvfp4", 4.5, "fp4"),
        Format("mxfp4", 4.25, "fp4"),
        Format("q8_0", 8.5, "bf16"),
        Format("q4_0", 4.5, "bf16"),
        Format("q4_k_m", 4.85, "bf16"),
    )
}
_ALIASES = {
    "f16": "fp16",
    "f32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "w8a8": "int8",
    "w8a16": "int8wo",
    "w4a16": "int4",
    "awq": "int4",
    "gptq": "int4",
    "fp4": "nvfp4",
    "e4m3": "fp8",
}


def format_named(name: str) -> Format:
    """Raises ``ConfigError`` for a name that is not known."""
    key = name.strip().lower()
    found = _FORMATS.get(_ALIASES.get(key, key))
    if found is None:
        raise ConfigError(f"unknown number format {name!r}; there are {', '.join(sorted(_FORMATS))}")
    return found


@dataclass(frozen=True, slots=True)
class Formats:
    """The format of each class of tensors."""

    weights: Format = _FORMATS["bf16"]
    """Attention and feed-forward matrices."""
    experts: Format | None = None
    """Routed experts; None: as ``weights``."""
    lm_head: Format = _FORMATS["bf16"]
    embedding: Format = _FORMATS["bf16"]
    kv: Format = _FORMATS["bf16"]
    activations: Format = _FORMATS["bf16"]
    """What flows between operations."""

    @property
    def of_experts(self) -> Format:
        return self.experts or self.weights

    def with_(self, **changes: str) -> Formats:
        """A copy with formats changed by name: ``formats.with_(kv="fp8")``."""
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise ConfigError(f"unknown tensor class {name!r}; there are {', '.join(sorted(known))}")
        return replace(self, **{name: format_named(value) for name, value in changes.items()})


_KV: Mapping[str, str] = {"fp8": "fp8", "nvfp4": "fp8"}
"""What engines keep the cache in when it is not said, by the weights' format."""


def formats_named(name: str, kv: str | None = None) -> Formats:
    """The usual set of formats under one name: all matrices but the output's in it, embedding and output in bf16.

    ``fp8`` and ``nvfp4`` checkpoints are served with an FP8 cache unless ``kv`` says otherwise.
    """
    weights = format_named(name)
    wide = _FORMATS["fp32"] if weights.name == "fp32" else _FORMATS["bf16"]
    cache = format_named(kv) if kv else _FORMATS[_KV.get(weights.name, wide.name)]
    return Formats(weights=weights, lm_head=wide, embedding=wide, kv=cache, activations=wide)


def cpu_formats(precision: Precision, head_dim: int) -> Formats:
    """Of this engine's own CPU kernels: integers with a scale per group, multiplied as 8-bit integers or in bf16."""
    integer = "bf16" if precision.weight_only else "int8"

    def matrix(name: str) -> Format:
        if name not in ("int8", "int4"):
            return Format(name, BITS[name], "bf16" if BITS[name] == 16 else "fp32")
        return Format(name, BITS[name] + SCALE_BITS / (precision.group_size or GROUPS[0]), integer)

    weights, head = matrix(precision.weights), matrix(precision.lm_head)
    bits = BITS[precision.kv] + (32 / head_dim if precision.kv == "int8" else 0)
    return Formats(weights, None, head, head, Format(precision.kv, bits, "bf16"), Format("bf16", 16, "bf16"))


def device_formats(precision: Precision, head_dim: int) -> Formats:
    """Of this engine's own GPU kernels: integers with a 16-bit scale per group, multiplied in bf16; FP8 with a scale
    per output, multiplied as such."""

    def matrix(name: str) -> Format:
        if name in ("int8", "int4"):
            return Format(name, BITS[name] + SCALE_BITS / (precision.group_size or GROUPS[0]), "bf16")
        return format_named(name)

    table = _FORMATS["fp32" if precision.weights == "float32" else "bf16"]
    kv = Format(precision.kv, BITS[precision.kv] + (32 / head_dim if precision.kv == "fp8" else 0), "bf16")
    return Formats(matrix(precision.weights), None, matrix(precision.lm_head), table, kv, table)


def own_formats(precision: Precision, head_dim: int) -> Formats:
    """Of this engine on the device that ``precision`` is for."""
    return device_formats(precision, head_dim) if precision.device == "cuda" else cpu_formats(precision, head_dim)


_OWN = {
    "bf16": "bf16",
    "int8": "int8",
    "int4": "int4",
    "w8a8": "int8",
    "w4a8": "int4",
    "w8a16": "int8",
    "w4a16": "int4",
}
"""Names of what this engine's CPU kernels hold weights in; those that end in a16 keep activations in bf16."""


_OWN_ON_DEVICE = {"bf16": "bf16", "fp8": "fp8", "int8": "int8", "int4": "int4", "w8a16": "int8", "w4a16": "int4"}
"""The same of its GPU kernels."""


def served_formats(name: str, kv: str | None, engine: str | None, head_dim: int, kind: str = "cpu") -> Formats:
    """``formats_named``, but of this engine (``tokenmill``) what its ``--weights`` of that name means on a device of
    that ``kind``, a CPU or a GPU."""
    if engine == "tokenmill" and kind == "gpu" and name.lower() in _OWN_ON_DEVICE and kv in (None, "bf16", "fp8"):
        weights = _OWN_ON_DEVICE[name.lower()]
        return device_formats(Precision("fast", weights, "bf16", kv or "bf16", device="cuda"), head_dim)
    weights = _OWN.get(name.lower(), "")
    if engine != "tokenmill" or kind != "cpu" or not weights or kv not in (None, "bf16", "int8"):
        return formats_named(name, kv)
    head = "bf16" if weights == "bf16" else "int8"
    precision = Precision("fast", weights, head, kv or "bf16", weight_only=name.lower().endswith("a16"))
    return cpu_formats(precision, head_dim)
