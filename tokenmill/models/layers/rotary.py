"""``Rotary``: each position's angles, shared by all layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenmill.core.model_config import RopeSpec
from tokenmill.kernels import ops
from tokenmill.kernels.reference.rope import rotary_table


class Angles(NamedTuple):
    """Cosines and sines of a step's tokens: two of ``[T, head_dim / 2]`` float32."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Turn every head of ``[T, heads, head_dim]`` by its token's angles."""
        return ops.rope(x, self.cos, self.sin)


class Rotary:
    def __init__(self, spec: RopeSpec, head_dim: int, num_positions: int, *, device: torch.device) -> None:
        cos, sin = rotary_table(spec, head_dim, num_positions)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def at(self, positions: Tensor) -> Angles:
        """``positions``: ``[T]`` int64, each below the number of positions that the table was made for."""
        return Angles(self.cos.index_select(0, positions), self.sin.index_select(0, positions))
