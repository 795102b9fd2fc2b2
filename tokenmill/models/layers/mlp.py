"""``GatedMLP``: down(silu(gate(x)) * up(x)), gate and up in one product (arXiv 2002.05202)."""

from __future__ import annotations

from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destinations
from tokenmill.models.layers.linear import Linear
from tokenmill.models.quantization.base import Scheme


class GatedMLP:
    def __init__(self, config: ModelConfig, scheme: Scheme) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        pieces = {"gate_proj": inner, "up_proj": inner}
        self.gate_up = Linear(scheme.gated(), scheme, hidden, pieces, bias=bias)
        self.down = Linear(scheme.linear(), scheme, inner, {"down_proj": hidden}, bias=bias)

    def destinations(self, prefix: str) -> Destinations:
        return {**self.gate_up.destinations(prefix), **self.down.destinations(prefix)}

    def parameters(self) -> list[Tensor]:
        return [*self.gate_up.parameters(), *self.down.parameters()]

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, hidden_size]`` to the same."""
        return self.down(ops.silu_mul(self.gate_up(x)))
