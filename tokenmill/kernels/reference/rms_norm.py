"""``rms_norm``: x / sqrt(mean(x²) + eps) * weight over the last dimension (arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise ``[..., d]`` with ``weight [d]``, in float32; returns x's dtype."""
    wide = x.contiguous().float()
    mean_square = (wide * wide).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (wide / torch.sqrt(mean_square + eps)).to(x.dtype) * weight
