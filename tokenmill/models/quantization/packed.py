"""``Packed``: a matrix in the panels that the CPU kernels read, in bf16 or quantised while it is loaded.

Quantisation is round-to-nearest with a scale per group of inputs (``kernels/cpu/packing.py``): nothing of the
checkpoint is kept in its own precision, and tensors are taken one at a time, so loading needs little more memory than
the packed weights. ``apply`` and ``rows`` compute from the unpacked values in PyTorch: slow, and what the kernels are
compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from tokenmill.core.precision import Precision
from tokenmill.kernels import ops
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.records import Weight, WeightFormat
from tokenmill.models.layers.destination import Destination, Destinations
from tokenmill.models.quantization.base import ExpertsMethod, LinearMethod, Unquantized
from tokenmill.models.quantization.packed_experts import PackedExperts


class Packed:
    """A ``LinearMethod`` for the CPU kernels.

    Args:
        form: ``bf16``, ``int8`` or ``int4``.
        precision: says the group for a width.
        gated: the two pieces are gate and up, whose outputs lie side by side.
    """

    matrix: PackedMatrix

    def __init__(self, form: str, precision: Precision, *, gated: bool = False) -> None:
        self.format = WeightFormat[form.upper()]
        self._form, self._precision, self._gated = form, precision, gated

    def create(
        self, in_size: int, piece_sizes: Sequence[int], *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.in_size = in_size
        self.group = self._precision.group_of(self._form, in_size)
        self.input_group = 0 if self._precision.weight_only else self.group
        """Inputs that come with a scale; 0: they come in bf16."""
        self._piece_sizes = tuple(piece_sizes)
        self._offsets = tuple(accumulate(piece_sizes, initial=0))
        out_size = self._offsets[-1]
        self.matrix = PackedMatrix.allocate(self.format, out_size, in_size, self.group, gated=self._gated)
        self._bias = torch.zeros(self.matrix.padded_out_size) if bias else None

    def destinations(self, piece: int) -> Destinations:
        size, offset = self._piece_sizes[piece], self._offsets[piece]
        found = {"weight": Destination((size, self.in_size), partial(self.matrix.write_rows, offset))}
        if self._bias is not None:
            found["bias"] = Destination((size,), partial(self._write_bias, offset))
        return found

    def parameters(self) -> list[Tensor]:
        matrix = self.matrix.tensors()
        return matrix if self._bias is None else [*matrix, self._bias]

    def apply(self, x: Tensor) -> Tensor:
        bias = None if self._bias is None else self._bias[self.matrix.places()].to(x.dtype)
        return ops.linear(x, self.matrix.dequantize().to(x.dtype), bias)

    def rows(self, indices: Tensor) -> Tensor:
        return self.matrix.dequantize()[indices]

    # ---- for the kernels -----------------------------------------------------------------------------

    def record(self) -> Weight:
        """The matrix as the kernels take it."""
        return self.matrix.record()

    @property
    def kernel(self) -> str:
        """Its name in the library."""
        if self.group and not self.input_group:
            return {WeightFormat.INT8: "linear_w8a16", WeightFormat.INT4: "linear_w4a16"}[self.format]
        return f"linear_{self.format.name.lower()}"

    @property
    def bias_address(self) -> int | None:
        return None if self._bias is None else self._bias.data_ptr()

    def _write_bias(self, offset: int, bias: Tensor) -> None:
        assert self._bias is not None
        self._bias[self.matrix.places()[offset : offset + len(bias)]] = bias.float()


@dataclass(frozen=True, slots=True)
class PackedScheme:
    """Every matrix packed as ``precision`` says; norms and biases in floats; routers and an own token table in bf16."""

    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def linear(self) -> LinearMethod:
        return Packed(self.precision.weights, self.precision)

    def gated(self) -> LinearMethod:
        return Packed(self.precision.weights, self.precision, gated=True)

    def router(self) -> LinearMethod:
        return Packed("bf16", self.precision)

    def experts(self) -> ExpertsMethod:
        return PackedExperts(self.precision.weights, self.precision)

    def output(self) -> LinearMethod:
        return Packed(self.precision.lm_head, self.precision)

    def table(self) -> LinearMethod:
        return Unquantized(torch.bfloat16)
