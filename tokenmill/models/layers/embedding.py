"""``Embedding``: the token table, and the output matrix that may be the same table."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels import ops
from tokenmill.models.layers.destination import Destinations, into


class Embedding:
    def __init__(self, vocab_size: int, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(vocab_size, size, dtype=dtype, device=device)

    def destinations(self, name: str) -> Destinations:
        return {f"{name}.weight": into(self.weight)}

    def parameters(self) -> list[Tensor]:
        return [self.weight]

    def __call__(self, token_ids: Tensor) -> Tensor:
        """``[T]`` to ``[T, size]``."""
        return ops.embedding(token_ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[S, size]`` to ``[S, vocab_size]`` float32: a product with every token's vector."""
        return ops.linear(hidden, self.weight).float()
