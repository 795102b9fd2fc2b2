"""``Experts``: a router and the gated MLPs it chooses from; in a layer it stands where ``GatedMLP`` does.

Checkpoints hold an expert's matrices one by one, or those of all experts of a layer stacked (as ``transformers`` 5
has them in memory, and writes if asked to)::

    experts.3.gate_proj.weight [I, H]      or      experts.gate_up_proj [E, 2 * I, H], the gate's rows first
    experts.3.up_proj.weight   [I, H]              experts.down_proj    [E, H, I]
    experts.3.down_proj.weight [H, I]

Either way every matrix goes on its own to where the scheme keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tokenmill.core.model_config import ExpertsSpec, ModelConfig
from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destination, Destinations
from tokenmill.models.layers.linear import Linear
from tokenmill.models.quantization.base import ExpertPiece, Scheme


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a checkpoint calls the matrices of one expert, or, ``stacked``, of all experts of a layer."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    stacked: bool = False


APART = ExpertNames()
"""As most families call them."""


class Experts:
    """A layer's experts; weights uninitialised until loaded."""

    def __init__(self, config: ModelConfig, spec: ExpertsSpec, scheme: Scheme) -> None:
        self.spec = spec
        self.hidden_size = config.hidden_size
        pieces = {"gate": spec.num_experts}
        self.router = Linear(scheme.router(), scheme, config.hidden_size, pieces, bias=False)
        self.method = scheme.experts()
        self.method.create(
            spec.num_experts, config.hidden_size, spec.intermediate_size, dtype=scheme.dtype, device=scheme.device
        )

    def destinations(self, prefix: str, names: ExpertNames) -> Destinations:
        found = self.router.destinations(prefix)
        if names.stacked:
            inner, hidden = self.spec.intermediate_size, self.hidden_size
            stacks: dict[str, tuple[tuple[ExpertPiece, ...], tuple[int, int]]] = {
                "gate_up_proj": (("gate", "up"), (2 * inner, hidden)),
                "down_proj": (("down",), (hidden, inner)),
            }
            for name, (pieces, shape) in stacks.items():
                take = partial(self._take_stack, pieces)
                found[f"{prefix}experts.{name}"] = Destination((self.spec.num_experts, *shape), take)
            return found
        called: dict[ExpertPiece, str] = {"gate": names.gate, "up": names.up, "down": names.down}
        for expert in range(self.spec.num_experts):
            for piece, name in called.items():
                for suffix, destination in self.method.destinations(expert, piece).items():
                    found[f"{prefix}experts.{expert}.{name}.{suffix}"] = destination
        return found

    def parameters(self) -> list[Tensor]:
        return [*self.router.parameters(), *self.method.parameters()]

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and their weights for ``x [T, hidden_size]``: int32 and float32, ``[T, num_active]``."""
        return ops.route(self.router(x), self.spec.num_active, normalize=self.spec.normalize_topk)

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, hidden_size]`` to the same."""
        return self.method.apply(x, *self.choose(x))

    def _take_stack(self, pieces: tuple[ExpertPiece, ...], stack: Tensor) -> None:
        for expert, matrix in enumerate(stack):
            for piece, rows in zip(pieces, torch.chunk(matrix, len(pieces)), strict=True):
                self.method.destinations(expert, piece)["weight"].take(rows)
