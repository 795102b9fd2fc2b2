"""``LinearMethod``: how one linear layer's weights are created, loaded and applied.

A layer's output may be several checkpoint tensors laid one after the other (query, key and value; gate and
up), its *pieces*. The method sees the sizes of the pieces that this device holds, so it creates weights
after sharding; it tells, per piece, which checkpoint tensors it wants and where they go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destinations, into


class LinearMethod(Protocol):
    """One layer's weights under one scheme."""

    def create(
        self, in_size: int, piece_sizes: Sequence[int], *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate, uninitialised; called once, before anything else."""
        ...

    def destinations(self, piece: int) -> Destinations:
        """The checkpoint tensors of a piece, by the end of their names: ``weight``, ``bias``, ``scales``, …"""
        ...

    def parameters(self) -> list[Tensor]:
        """Every tensor that is stored."""
        ...

    def apply(self, x: Tensor) -> Tensor:
        """``[T, in_size]`` to ``[T, sum(piece_sizes)]``."""
        ...


class Unquantized:
    """Plain floating point: one matrix ``[sum(piece_sizes), in_size]``."""

    weight: Tensor
    bias: Tensor | None

    def create(
        self, in_size: int, piece_sizes: Sequence[int], *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        out_size = sum(piece_sizes)
        self.weight = torch.empty(out_size, in_size, dtype=dtype, device=device)
        self.bias = torch.empty(out_size, dtype=dtype, device=device) if bias else None
        self._weights = torch.split(self.weight, list(piece_sizes))
        self._biases = torch.split(self.bias, list(piece_sizes)) if self.bias is not None else None

    def destinations(self, piece: int) -> Destinations:
        found = {"weight": into(self._weights[piece])}
        if self._biases is not None:
            found["bias"] = into(self._biases[piece])
        return found

    def parameters(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def apply(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)
