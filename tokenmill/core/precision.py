"""``Precision``: in what form a model is held and computed, resolved from what was asked and what is possible.

Two ways to compute: the *fast* kernels, of a CPU (C++) or a GPU (Triton), with weights in bfloat16 or quantised, keys
and values in bfloat16 or 8 bits; and the *reference* (plain PyTorch in one floating-point type, which runs everywhere).
What was left open is chosen here; what was asked for and cannot be is refused with the field's name.

On a GPU quantised integers are *weight-only*: what they are multiplied with stays in bf16. In ``fp8`` (e4m3, a scale
per output) weights and activations both have 8 bits.

A quantisation group is a run of a row's inputs that share a scale: the smaller, the finer and the slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenmill.core.engine_config import CacheConfig, ModelSource
from tokenmill.core.errors import ConfigError
from tokenmill.core.model_config import ModelConfig

GROUPS = (128, 64, 32)
"""Group sizes, the fastest first."""
KV_POSITIONS = 16
"""Positions whose scores the fast kernels make together: block sizes and heads are multiples of it."""

DEFAULT_WEIGHTS = "int8"
"""The fastest whose output stays within 0.01 nats of the checkpoint's own (docs/explanation/precision.md)."""

BITS = {"float32": 32, "bfloat16": 16, "bf16": 16, "int8": 8, "int4": 4, "fp8": 8}

MAX_HEAD_DIM, MAX_HEADS_PER_KV = 256, 16
"""Of the GPU's attention."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model is held and computed."""

    kernels: Literal["fast", "reference"]
    weights: str
    """``bf16``, ``int8``, ``int4``; of the reference ``float32`` or ``bfloat16``."""
    lm_head: str
    """Of the output matrix (and of the token table, where it is the same)."""
    kv: str
    group_size: int | None = None
    """Inputs that share a scale; None: per matrix, the largest of ``GROUPS`` that divides its width."""
    weight_only: bool = False
    """What quantised matrices are multiplied with stays in bf16; else it is rounded to 8 bits too, and quicker."""
    device: Literal["cpu", "cuda"] = "cpu"
    note: str = field(default="", compare=False)
    """Why it is not what it would be elsewhere; empty if it is."""

    def __str__(self) -> str:
        if self.kernels == "reference":
            return f"{self.weights} (reference kernels)"
        head = "" if self.lm_head == self.weights else f", output matrix {self.lm_head}"
        beside = ", bf16 activations" if self.weight_only else ""
        where = "" if self.device == "cpu" else " on the GPU"
        return f"{self.weights} weights{head}{beside}, {self.kv} KV{where}"

    def group_of(self, weights: str, width: int) -> int:
        """The group of a matrix with ``width`` inputs; 0 where it is not quantised."""
        if BITS[weights] >= 16 or weights == "fp8":
            return 0
        if self.group_size is not None:
            return self.group_size
        return next(group for group in GROUPS if width % group == 0)


def resolve_precision(
    config: ModelConfig,
    source: ModelSource,
    cache: CacheConfig,
    missing: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Precision:
    """Choose what was left open.

    Args:
        missing: why the fast kernels of a CPU cannot be had on this machine; None if they can.
        device: what computes.

    Raises:
        ConfigError: what was asked for contradicts itself, the model or the machine.
    """
    if device == "cuda":
        if (obstacle := device_obstacle(config, source, cache)) is not None:
            raise ConfigError(obstacle)
        return _of_device(source, cache)
    for name, form in (("weights", source.weights), ("lm_head", source.lm_head), ("kv", cache.kv)):
        if form == "fp8":
            raise ConfigError(f"{name} fp8 is for GPUs, and the CPU computes here: {name} int8")
    wishes = {"weights": source.weights, "lm_head": source.lm_head, "kv": cache.kv, "group_size": source.group_size}
    asked: dict[str, object] = {name: value for name, value in wishes.items() if value not in ("auto", None)}
    asked |= {"weight_only": True} if source.weight_only else {}
    if source.kernels == "reference" or (source.kernels == "auto" and source.dtype != "auto"):
        if asked:
            name, value = next(iter(asked.items()))
            because = "kernels is reference" if source.kernels == "reference" else f"dtype is {source.dtype}"
            raise ConfigError(f"{name} {value} is of the fast kernels, but {because}: leave out one of the two")
        return _reference(source)
    if source.dtype != "auto":
        raise ConfigError(f"dtype {source.dtype} is of the reference kernels, but kernels is fast: leave out dtype")
    weights, lm_head = _weights(config, source)
    if source.weight_only and "bf16" == weights == lm_head:
        raise ConfigError("weight_only is about quantised weights, and these are bf16: ask for weights int8 or int4")
    obstacle = missing or _obstacle(config, source, cache, weights, lm_head)
    if obstacle is None:
        kv = "bf16" if cache.kv == "auto" else cache.kv
        return Precision("fast", weights, lm_head, kv, source.group_size, source.weight_only)
    if asked or source.kernels == "fast":
        raise ConfigError(obstacle)
    return _reference(source, f"reference kernels, which are much slower: {obstacle}")


def device_obstacle(config: ModelConfig, source: ModelSource, cache: CacheConfig) -> str | None:
    """What the GPU's kernels cannot do of this; None if they can."""
    if source.kernels == "reference" or source.dtype != "auto":
        name, value = ("kernels", "reference") if source.kernels == "reference" else ("dtype", source.dtype)
        return f"{name} {value} computes on the CPU: leave it out, or device cpu"
    if cache.kv == "int8":
        return "kv int8 is of the CPU's kernels; on a GPU: kv fp8"
    if config.head_dim > MAX_HEAD_DIM or config.head_dim % 2:
        return f"head_dim {config.head_dim} of the model is not an even number up to {MAX_HEAD_DIM}, as the GPU needs"
    if config.num_groups > MAX_HEADS_PER_KV:
        return f"{config.num_groups} query heads share a key head; the GPU's kernels take {MAX_HEADS_PER_KV} at most"
    precision = _of_device(source, cache)
    if config.tie_embeddings and precision.lm_head != "bf16":
        return f"lm_head {precision.lm_head} cannot be: the output matrix is the token table too, which stays bf16"
    if source.weight_only and "fp8" in (precision.weights, precision.lm_head):
        return "weight_only leaves activations in bf16, and fp8 does not: leave out one of the two"
    return _indivisible(config, source, precision.weights, precision.lm_head)


def _of_device(source: ModelSource, cache: CacheConfig) -> Precision:
    weights = "bf16" if source.weights == "auto" else source.weights
    lm_head = "bf16" if source.lm_head == "auto" else source.lm_head
    kv = "bf16" if cache.kv == "auto" else cache.kv
    weight_only = bool({"int8", "int4"} & {weights, lm_head})
    return Precision("fast", weights, lm_head, kv, source.group_size, weight_only, "cuda")


def _reference(source: ModelSource, note: str = "") -> Precision:
    dtype = "float32" if source.dtype == "auto" else source.dtype
    return Precision("reference", dtype, dtype, dtype, note=note)


def _weights(config: ModelConfig, source: ModelSource) -> tuple[str, str]:
    """Of the layers and of the output matrix: the default where it divides, bf16 where it does not."""
    weights: str = source.weights
    if weights == "auto":
        divisible = all(width % GROUPS[-1] == 0 for width in _widths(config).values())
        weights = DEFAULT_WEIGHTS if divisible else "bf16"
    lm_head: str = source.lm_head
    if lm_head == "auto":
        lm_head = "bf16" if weights == "bf16" or config.hidden_size % GROUPS[-1] else "int8"
    return weights, lm_head


def _widths(config: ModelConfig) -> dict[str, int]:
    """Inputs of the layers' matrices."""
    widths = {
        "self_attn.q_proj": config.hidden_size,
        "self_attn.o_proj": config.q_size,
        "mlp.gate_proj": config.hidden_size,
    }
    if config.num_dense_layers:
        widths["mlp.down_proj"] = config.intermediate_size
    if config.experts is not None:
        widths["mlp.experts.down_proj"] = config.experts.intermediate_size
    return widths


def _obstacle(config: ModelConfig, source: ModelSource, cache: CacheConfig, weights: str, lm_head: str) -> str | None:
    """What the fast kernels cannot do of this."""
    if config.head_dim % KV_POSITIONS:
        return f"head_dim {config.head_dim} of the model is no multiple of {KV_POSITIONS}, which the fast kernels need"
    if cache.block_size % KV_POSITIONS:
        return f"block_size {cache.block_size} is no multiple of {KV_POSITIONS}, which the fast kernels need"
    for name, width in {**_widths(config), "lm_head": config.hidden_size}.items():
        if width % 2:
            return f"{name} has {width} inputs; the fast kernels need an even number"
    return _indivisible(config, source, weights, lm_head)


def _indivisible(config: ModelConfig, source: ModelSource, weights: str, lm_head: str) -> str | None:
    """The matrix whose inputs the groups of its form do not divide."""
    matrices = [(name, width, weights) for name, width in _widths(config).items()]
    for name, width, form in [*matrices, ("lm_head", config.hidden_size, lm_head)]:
        group = source.group_size or GROUPS[-1]
        if BITS[form] < 16 and form != "fp8" and width % group:
            return (
                f"{name} has {width} inputs, which groups of {group} do not divide: "
                f"another group_size (a multiple of {GROUPS[-1]}), or weights bf16"
            )
    return None
