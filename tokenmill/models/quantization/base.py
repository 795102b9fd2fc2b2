"""``LinearMethod``: how one matrix is created, loaded and applied; ``Scheme``: which method each matrix gets.

A layer's output may be several checkpoint tensors laid one after the other (query, key and value; gate and
up), its *pieces*. The method sees the sizes of the pieces that this device holds, so it creates weights
after sharding; it tells, per piece, which checkpoint tensors it wants and where they go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destinations, into


class LinearMethod(Protocol):
    """One matrix under one scheme."""

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

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the matrix, for one that is a table of token vectors: ``[T]`` to ``[T, in_size]``."""
        ...


class Unquantized:
    """Plain floating point: one matrix ``[sum(piece_sizes), in_size]``, in the scheme's type unless told another."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype

    def create(
        self, in_size: int, piece_sizes: Sequence[int], *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        out_size, dtype = sum(piece_sizes), self._dtype or dtype
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

    def rows(self, indices: Tensor) -> Tensor:
        return ops.embedding(indices, self.weight)


class Scheme(Protocol):
    """Which method each of a decoder's matrices gets, and in what its small tensors are kept."""

    @property
    def dtype(self) -> torch.dtype:
        """Of norms, biases, and of what flows between layers where the decoder runs eagerly."""
        ...

    @property
    def device(self) -> torch.device: ...

    def linear(self) -> LinearMethod:
        """For a product."""
        ...

    def gated(self) -> LinearMethod:
        """For gate and up, the two pieces whose halves the activation joins."""
        ...

    def output(self) -> LinearMethod:
        """For the output matrix, which may be the token table as well."""
        ...

    def table(self) -> LinearMethod:
        """For a token table that is not the output matrix."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Everything in one floating-point type."""

    dtype: torch.dtype
    device: torch.device

    def linear(self) -> LinearMethod:
        return Unquantized()

    gated = output = table = linear
