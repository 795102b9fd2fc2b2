"""``LinearMethod``: how one matrix is created, loaded and applied; ``Scheme``: which method each matrix gets.

``ExpertsMethod`` is the same for all experts of a layer, whose matrices lie together and run together.

A layer's output may be several checkpoint tensors laid one after the other (query, key and value; gate and
up), its *pieces*. The method sees the sizes of the pieces that this device holds, so it creates weights
after sharding; it tells, per piece, which checkpoint tensors it wants and where they go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destination, Destinations, into

ExpertPiece = Literal["gate", "up", "down"]


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


class ExpertsMethod(Protocol):
    """All experts of a layer under one scheme: per expert a gate, up and down matrix."""

    def create(
        self, num_experts: int, hidden_size: int, inner_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate, uninitialised; called once, before anything else."""
        ...

    def destinations(self, expert: int, piece: ExpertPiece) -> Destinations:
        """The checkpoint tensors of one expert's matrix, by the end of their names."""
        ...

    def parameters(self) -> list[Tensor]:
        """Every tensor that is stored."""
        ...

    def apply(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """``x [T, hidden_size]`` through experts ``ids [T, k]``, added by ``weights [T, k]``: ``[T, hidden_size]``."""
        ...


class UnquantizedExperts:
    """Plain floating point, stacked: ``gate_up [E, 2 * inner, hidden]`` (the gate's rows first), ``down``."""

    gate_up: Tensor
    down: Tensor

    def create(
        self, num_experts: int, hidden_size: int, inner_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.gate_up = torch.empty(num_experts, 2 * inner_size, hidden_size, dtype=dtype, device=device)
        self.down = torch.empty(num_experts, hidden_size, inner_size, dtype=dtype, device=device)

    def destinations(self, expert: int, piece: ExpertPiece) -> Destinations:
        shape = (self.down.shape[2], self.down.shape[1]) if piece != "down" else tuple(self.down.shape[1:])
        return {"weight": Destination(shape, partial(self._take, expert, piece))}

    def _take(self, expert: int, piece: ExpertPiece, weight: Tensor) -> None:
        place = self.down[expert] if piece == "down" else self.gate_up[expert].chunk(2)[piece == "up"]
        place.copy_(weight)

    def parameters(self) -> list[Tensor]:
        return [self.gate_up, self.down]

    def apply(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return ops.experts(x, ids, weights, self.gate_up, self.down)


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

    def router(self) -> LinearMethod:
        """For the small matrix that scores experts: what it rounds, it may send elsewhere."""
        ...

    def experts(self) -> ExpertsMethod:
        """For all experts of a layer."""
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

    gated = router = output = table = linear

    def experts(self) -> ExpertsMethod:
        return UnquantizedExperts()
