"""``Linear``: a product with a weight matrix, possibly several checkpoint matrices merged into one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tokenmill.models.layers.destination import Destinations
from tokenmill.models.quantization.base import LinearMethod, Scheme


class Linear:
    """One product for several outputs of the same input: ``pieces`` maps checkpoint names to output sizes."""

    def __init__(
        self,
        method: LinearMethod,
        scheme: Scheme,
        in_size: int,
        pieces: Mapping[str, int],
        *,
        bias: bool,
    ) -> None:
        self.method = method
        self.piece_names = tuple(pieces)
        self.piece_sizes = tuple(pieces.values())
        method.create(in_size, self.piece_sizes, bias=bias, dtype=scheme.dtype, device=scheme.device)

    def destinations(self, prefix: str) -> Destinations:
        return {
            f"{prefix}{name}.{suffix}": destination
            for piece, name in enumerate(self.piece_names)
            for suffix, destination in self.method.destinations(piece).items()
        }

    def parameters(self) -> list[Tensor]:
        return self.method.parameters()

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, in_size]`` to ``[T, sum of the pieces]``."""
        return self.method.apply(x)
