"""``RMSNorm``: normalise by the root mean square, then scale each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destinations, into
from tokenmill.models.quantization.base import Scheme


class RMSNorm:
    def __init__(self, size: int, eps: float, scheme: Scheme) -> None:
        self.eps = eps
        self.weight = torch.empty(size, dtype=scheme.dtype, device=scheme.device)

    def destinations(self, name: str) -> Destinations:
        return {f"{name}.weight": into(self.weight)}

    def parameters(self) -> list[Tensor]:
        return [self.weight]

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., size]`` to the same."""
        return ops.rms_norm(x, self.weight, self.eps)
