"""``DeviceExperts``: a layer's experts on a GPU, as one matrix of gates and ups and one of downs.

Every expert's rows follow those of the one before, so a quantised stack is a ``DeviceMatrix`` of many pieces, and the
grouped kernels (``kernels/triton/experts.py``) find an expert by its first row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.core.precision import Precision
from tokenmill.kernels.triton.experts import ExpertBuffers, Weight, experts
from tokenmill.models.layers.destination import Destinations
from tokenmill.models.quantization.base import ExpertPiece
from tokenmill.models.quantization.device import DeviceMatrix


class DeviceExperts:
    """An ``ExpertsMethod`` for the GPU's kernels; ``form`` as of ``DeviceMatrix``."""

    def __init__(self, form: str, precision: Precision) -> None:
        self._gate_up, self._down = DeviceMatrix(form, precision), DeviceMatrix(form, precision)

    def create(
        self, num_experts: int, hidden_size: int, inner_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_experts, self.hidden_size, self.inner_size = num_experts, hidden_size, inner_size
        self._gate_up.create(hidden_size, [inner_size] * 2 * num_experts, bias=False, dtype=dtype, device=device)
        self._down.create(inner_size, [hidden_size] * num_experts, bias=False, dtype=dtype, device=device)

    def destinations(self, expert: int, piece: ExpertPiece) -> Destinations:
        if piece == "down":
            return self._down.destinations(expert)
        return self._gate_up.destinations(2 * expert + (piece == "up"))

    def parameters(self) -> list[Tensor]:
        return [*self._gate_up.parameters(), *self._down.parameters()]

    def apply(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.empty_like(x)
        buffers = self.buffers(ids.shape[0], ids.shape[1], x.dtype, x.device)
        self.apply_into(x, ids, weights, out, buffers=buffers)
        return out

    def apply_into(self, x: Tensor, ids: Tensor, weights: Tensor, out: Tensor, *, buffers: ExpertBuffers) -> None:
        """``out [T, hidden_size]`` gets what ``apply`` returns, the same bits in any company; ``buffers``: for at least
        as many tokens."""
        gate_up, down = self._stack(self._gate_up), self._stack(self._down)
        experts(x, ids, weights, gate_up, down, out, buffers=buffers)

    def buffers(self, max_tokens: int, num_active: int, dtype: torch.dtype, device: torch.device) -> ExpertBuffers:
        """Enough for so many tokens of ``num_active`` experts each; all layers can share them."""
        sizes = (max_tokens, num_active, self.num_experts, self.hidden_size, self.inner_size)
        return ExpertBuffers.allocate(*sizes, dtype, device, fp8=self._gate_up.form == "fp8")

    def _stack(self, matrix: DeviceMatrix) -> Weight:
        weight = matrix.weight
        return weight.view(self.num_experts, -1, matrix.in_size) if isinstance(weight, Tensor) else weight
