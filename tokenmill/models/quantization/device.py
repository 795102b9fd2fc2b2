"""``DeviceScheme``: matrices on a GPU, straight from the mapped checkpoint, quantised there.

A checkpoint's tensor is a view of a mapped file; it crosses to the device as it is, and is cast or quantised there some
rows at a time: the host never holds more than the pages being read, the device little more than its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate as running_sum

import torch
from torch import Tensor

from tokenmill.core.precision import Precision
from tokenmill.kernels.triton.linear import Weight, linear, linear_silu_mul
from tokenmill.kernels.triton.quantize import Fp8Weight, PackedWeight
from tokenmill.kernels.triton.tiles import workspace
from tokenmill.models.layers.destination import Destination, Destinations
from tokenmill.models.quantization.base import ExpertsMethod

WEIGHTS_AT_ONCE = 1 << 24
"""That are quantised at once: some 0.5 GB of temporaries on the device, while the model is loaded."""


class DeviceMatrix:
    """A ``LinearMethod`` for the GPU's kernels.

    Args:
        form: ``float32``, ``bf16``, ``int8``, ``int4`` or ``fp8``.
        precision: says the group for a width.
    """

    weight: Weight
    bias: Tensor | None

    def __init__(self, form: str, precision: Precision) -> None:
        self.form, self._precision = form, precision

    def create(
        self, in_size: int, piece_sizes: Sequence[int], *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.in_size, self.out_size = in_size, sum(piece_sizes)
        self._sizes, self._offsets = tuple(piece_sizes), tuple(running_sum(piece_sizes, initial=0))
        self._device = device
        if self.form in ("int8", "int4"):
            group = self._precision.group_of(self.form, in_size)
            self.weight = PackedWeight.allocate(self.form, self.out_size, in_size, group, device)
        elif self.form == "fp8":
            self.weight = Fp8Weight.allocate(self.out_size, in_size, device)
        else:
            self.weight = torch.empty(self.out_size, in_size, dtype=dtype, device=device)
        self.bias = torch.empty(self.out_size, dtype=dtype, device=device) if bias else None
        workspace(self.parameters()[0].device)  # now, and not while a graph is captured

    def destinations(self, piece: int) -> Destinations:
        size, offset = self._sizes[piece], self._offsets[piece]
        found = {"weight": Destination((size, self.in_size), partial(self._write_rows, offset))}
        if self.bias is not None:
            found["bias"] = Destination((size,), self.bias[offset : offset + size].copy_)
        return found

    def parameters(self) -> list[Tensor]:
        matrix = [self.weight] if isinstance(self.weight, Tensor) else self.weight.tensors()
        return matrix if self.bias is None else [*matrix, self.bias]

    def apply(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.out_size)
        self.apply_into(x, out)
        return out

    def apply_into(self, x: Tensor, out: Tensor, *, accumulate: bool = False, invariant: bool = False) -> None:
        """``out [T, out_size]`` gets, or with ``accumulate`` is increased by, the product.

        ``invariant``: a row's bits do not depend on the others (``kernels/triton/linear.py``).
        """
        linear(x, self.weight, out, bias=self.bias, accumulate=accumulate, invariant=invariant)

    def silu_mul_into(self, x: Tensor, out: Tensor, *, gate_up: Tensor, invariant: bool = False) -> None:
        """For gate and up: ``out [T, out_size / 2]`` gets silu(gate) * up; ``gate_up [T, out_size]`` is scratch."""
        linear_silu_mul(x, self.weight, out, gate_up=gate_up, bias=self.bias, invariant=invariant)

    def rows(self, indices: Tensor) -> Tensor:
        if isinstance(self.weight, Tensor):
            return self.weight.index_select(0, indices)
        return self.weight.rows(indices, torch.bfloat16)

    def _write_rows(self, first: int, rows: Tensor) -> None:
        if isinstance(self.weight, Tensor):
            self.weight[first : first + len(rows)].copy_(rows)
            return
        step = max(1, WEIGHTS_AT_ONCE // self.in_size)
        for begin in range(0, len(rows), step):
            self.weight.write_rows(first + begin, rows[begin : begin + step].to(self._device))


@dataclass(frozen=True, slots=True)
class DeviceScheme:
    """Every matrix as ``precision`` says, on ``device``; norms and biases in bf16 (float32 with float32 weights)."""

    precision: Precision
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision.weights == "float32" else torch.bfloat16

    def linear(self) -> DeviceMatrix:
        return DeviceMatrix(self.precision.weights, self.precision)

    gated = linear

    def router(self) -> DeviceMatrix:
        return self.table()

    def experts(self) -> ExpertsMethod:
        from tokenmill.models.quantization.device_experts import DeviceExperts  # made of DeviceMatrix

        return DeviceExperts(self.precision.weights, self.precision)

    def output(self) -> DeviceMatrix:
        return DeviceMatrix(self.precision.lm_head, self.precision)

    def table(self) -> DeviceMatrix:
        return DeviceMatrix(str(self.dtype).removeprefix("torch."), self.precision)
