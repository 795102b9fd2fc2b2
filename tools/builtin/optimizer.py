"""Muon: momentum whose update for a weight matrix is made orthogonal.

The gradient of a weight matrix usually has a few large singular values; a step along it moves few directions
far and most hardly at all.  Muon keeps the momentum M = U S V^T and steps along U V^T instead, so that every
direction moves alike.  U V^T is found without a decomposition by Newton-Schulz iteration: the odd polynomial
p(x) = a x + b x^3 + c x^5, applied to the matrix, acts on its singular values alone, and a few rounds push all of
(0, 1] near 1.  The coefficients are Keller Jordan's, steep at zero; exactness near 1 matters little.

Matrices of equal shape are stacked and orthogonalised in one batched product: the small products of a small
model would otherwise cost more in overhead than in arithmetic.

The step is scaled by 0.2 * sqrt(max(rows, columns)), which gives it the root-mean-square size of an AdamW step, so
that both optimizers can be given learning rates of one order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAMW_RMS = 0.2


def orthogonalize(matrices: Tensor, rounds: int) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly; ``matrices`` is (count, rows, columns)."""
    a, b, c = COEFFICIENTS
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if transposed else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if transposed else x


class Muon(torch.optim.Optimizer):
    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0, rounds: int = 4
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "rounds": rounds})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for params in by_shape.values():
                self._step_alike(params, group)

    def _step_alike(self, params: list[Tensor], group: dict) -> None:
        updates = []
        for p in params:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov: look one step ahead
        directions = orthogonalize(torch.stack(updates), group["rounds"])
        scale = ADAMW_RMS * max(params[0].shape) ** 0.5
        for p, direction in zip(params, directions, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)
