"""How a model is spread over devices.

==== =================================================================================================================
tp   tensor parallelism: every matrix is cut; two all-reduces a layer (Megatron-LM, arXiv 1909.08053)
pp   pipeline parallelism: consecutive layers on consecutive stages; hidden states are handed over
dp   data-parallel attention inside one engine: each of ``dp`` groups serves its own sequences, experts are shared
ep   expert parallelism: the routed experts are spread over ``ep`` of the ``tp * dp`` devices of a stage, whole
cp   context parallelism: the positions of a sequence are split over ``cp`` devices (ring attention, arXiv 2310.01889)
==== =================================================================================================================

``sequence_parallel`` replaces each all-reduce by a reduce-scatter and an all-gather (arXiv 2205.05198): the same bytes,
and norms on a share of the tokens. Replicas are not a layout: they are several engines.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tokenmill.core.errors import ConfigError
from tokenmill.perf.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Layout:
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    cp: int = 1
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "sequence_parallel" and not (type(value) is int and value >= 1):
                raise ConfigError(f"{field.name} must be an integer of at least 1, not {value!r}")

    @property
    def num_devices(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    @property
    def expert_tp(self) -> int:
        """Ranks that share each expert: tensor parallelism inside experts."""
        return self.tp * self.dp // self.ep

    def check(self, shape: ModelShape) -> None:
        """Raises ``ConfigError``, naming what does not divide, if ``shape`` cannot be spread so."""
        for heads, kv_heads in shape.attention_heads:
            if heads % self.tp:
                raise ConfigError(f"tp={self.tp} does not divide the {heads} query heads of {shape.name}")
            if kv_heads % self.tp and self.tp % kv_heads:
                raise ConfigError(
                    f"tp={self.tp}: the {kv_heads} KV heads of {shape.name} can neither be split over {self.tp} ranks "
                    "nor copied evenly; tp must divide them or be a multiple of them"
                )
        for run in shape.layers:
            for matrix in run.matrices(shape.hidden_size):
                width = matrix.outputs if matrix.split == "column" else matrix.inputs
                if matrix.split != "none" and matrix.max_ranks is None and width % self.tp:
                    raise ConfigError(
                        f"tp={self.tp} does not divide the width {width} of '{matrix.op}' in {shape.name}"
                    )
        if self.pp > shape.num_layers:
            raise ConfigError(f"pp={self.pp} is more than the {shape.num_layers} layers of {shape.name}")
        self._check_experts(shape)

    def _check_experts(self, shape: ModelShape) -> None:
        if self.ep == 1:
            return
        if not shape.has_experts:
            raise ConfigError(f"ep={self.ep}: {shape.name} has no experts")
        if (self.tp * self.dp) % self.ep:
            raise ConfigError(f"ep={self.ep} does not divide the tp × dp = {self.tp * self.dp} devices of a stage")
        for run in shape.layers:
            if run.experts and run.experts.num_experts % self.ep:
                raise ConfigError(f"ep={self.ep} does not divide the {run.experts.num_experts} experts of {shape.name}")

    def __str__(self) -> str:
        parts = [f"{name}={getattr(self, name)}" for name in ("tp", "pp", "dp", "ep", "cp") if getattr(self, name) > 1]
        return ", ".join([*parts, *(["sequence parallel"] if self.sequence_parallel else [])]) or "one device"
