"""``Embedding``: a matrix of one vector per token, read by rows on the way in, multiplied by on the way out."""

from __future__ import annotations

from torch import Tensor

from tokenmill.models.layers.destination import Destinations
from tokenmill.models.quantization.base import LinearMethod, Scheme


class Embedding:
    def __init__(self, method: LinearMethod, scheme: Scheme, vocab_size: int, size: int) -> None:
        self.method = method
        self._dtype = scheme.dtype
        method.create(size, [vocab_size], bias=False, dtype=scheme.dtype, device=scheme.device)

    def destinations(self, name: str) -> Destinations:
        return {f"{name}.{suffix}": found for suffix, found in self.method.destinations(0).items()}

    def parameters(self) -> list[Tensor]:
        return self.method.parameters()

    def __call__(self, token_ids: Tensor) -> Tensor:
        """``[T]`` to ``[T, size]``."""
        return self.method.rows(token_ids).to(self._dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[S, size]`` to ``[S, vocab_size]`` float32: a product with every token's vector."""
        return self.method.apply(hidden).float()
