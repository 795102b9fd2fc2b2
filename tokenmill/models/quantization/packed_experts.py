"""``PackedExperts``: a layer's experts in the panels that the CPU kernels read, one matrix after the other."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from tokenmill.core.precision import Precision
from tokenmill.kernels import ops
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.records import PANEL, Weight, WeightFormat
from tokenmill.models.layers.destination import Destination, Destinations
from tokenmill.models.quantization.base import ExpertPiece


class PackedStack:
    """Matrices of one shape in one piece of memory, each from a new panel on."""

    def __init__(
        self, form: str, precision: Precision, num_matrices: int, out_size: int, in_size: int, *, gated: bool = False
    ) -> None:
        self.format = WeightFormat[form.upper()]
        self.in_size, self.out_size, self.gated = in_size, out_size, gated
        self.group = precision.group_of(form, in_size)
        self.input_group = 0 if precision.weight_only else self.group
        """As of ``Packed``."""
        # A single matrix of all panels has the layout; what its outputs mean is told by the parts.
        padded = -(-out_size // PANEL) * PANEL
        self._whole = PackedMatrix.allocate(self.format, num_matrices * padded, in_size, self.group)
        self.matrices = [
            PackedMatrix(self.format, in_size, out_size, self.group, gated, data, scales)
            for data, scales in zip(
                np.split(self._whole.data, num_matrices), np.split(self._whole.scales, num_matrices), strict=True
            )
        ]

    def tensors(self) -> list[Tensor]:
        """The memory that the stack owns."""
        return self._whole.tensors()

    def dequantize(self) -> Tensor:
        """``[num_matrices, out_size, in_size]`` float32."""
        return torch.stack([matrix.dequantize() for matrix in self.matrices])

    def record(self) -> Weight:
        """As the kernels take it: all matrices, and the size of one."""
        record = self._whole.record()
        record.out_size = self.out_size
        return record


class PackedExperts:
    """An ``ExpertsMethod`` for the CPU kernels; ``form``: ``bf16``, ``int8`` or ``int4``."""

    gate_up: PackedStack
    down: PackedStack

    def __init__(self, form: str, precision: Precision) -> None:
        self._form, self._precision = form, precision

    def create(
        self, num_experts: int, hidden_size: int, inner_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        form, precision = self._form, self._precision
        self.inner_size = inner_size
        self.gate_up = PackedStack(form, precision, num_experts, 2 * inner_size, hidden_size, gated=True)
        self.down = PackedStack(form, precision, num_experts, hidden_size, inner_size)

    def destinations(self, expert: int, piece: ExpertPiece) -> Destinations:
        stack, first, size = {
            "gate": (self.gate_up, 0, self.inner_size),
            "up": (self.gate_up, self.inner_size, self.inner_size),
            "down": (self.down, 0, self.down.out_size),
        }[piece]
        take = partial(stack.matrices[expert].write_rows, first)
        return {"weight": Destination((size, stack.in_size), take)}

    def parameters(self) -> list[Tensor]:
        return [*self.gate_up.tensors(), *self.down.tensors()]

    def apply(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        stacks = (stack.dequantize().to(x.dtype) for stack in (self.gate_up, self.down))
        return ops.experts(x, ids, weights, *stacks)

    # ---- for the kernels -----------------------------------------------------------------------------

    @property
    def kernel(self) -> str:
        """Its name in the library."""
        if self._precision.weight_only and self.gate_up.group:
            return {"int8": "experts_w8a16", "int4": "experts_w4a16"}[self._form]
        return f"experts_{self._form}"
