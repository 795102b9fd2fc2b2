"""What stands between attention and the next layer, on buffers that never move: one runner per kind of block."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tokenmill.kernels.triton.experts import route
from tokenmill.models.decoder import Decoder
from tokenmill.models.layers.experts import Experts
from tokenmill.models.layers.linear import Linear
from tokenmill.models.layers.mlp import GatedMLP
from tokenmill.models.quantization.device import DeviceMatrix
from tokenmill.models.quantization.device_experts import DeviceExperts


class Block(Protocol):
    """One layer's block."""

    def __call__(self, x: Tensor, out: Tensor, *, invariant: bool) -> None:
        """``x [T, hidden_size]`` through the block into ``out``."""
        ...


def matrix_of(linear: Linear) -> DeviceMatrix:
    """What carries a product out; the decoder was made with a ``DeviceScheme``."""
    assert isinstance(linear.method, DeviceMatrix)
    return linear.method


class GatedScratch:
    """Between the products of gated MLPs; one for all layers."""

    def __init__(self, max_tokens: int, inner_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.gate_up = torch.zeros((max_tokens, 2 * inner_size), dtype=dtype, device=device)
        self.inner = torch.zeros((max_tokens, inner_size), dtype=dtype, device=device)


class GatedBlock:
    """A gated MLP."""

    def __init__(self, mlp: GatedMLP, scratch: GatedScratch) -> None:
        self._gate_up, self._down = matrix_of(mlp.gate_up), matrix_of(mlp.down)
        self._scratch = scratch

    def __call__(self, x: Tensor, out: Tensor, *, invariant: bool) -> None:
        gate_up, inner = self._scratch.gate_up[: len(x)], self._scratch.inner[: len(x)]
        self._gate_up.silu_mul_into(x, inner, gate_up=gate_up, invariant=invariant)
        self._down.apply_into(inner, out, invariant=invariant)


class ExpertsScratch:
    """From the router to the experts' sum; one for all layers."""

    def __init__(self, mlp: Experts, max_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        spec = mlp.spec
        self.logits = torch.zeros((max_tokens, spec.num_experts), dtype=dtype, device=device)
        self.ids = torch.zeros((max_tokens, spec.num_active), dtype=torch.int32, device=device)
        self.weights = torch.zeros((max_tokens, spec.num_active), device=device)
        self.buffers = experts_of(mlp).buffers(max_tokens, spec.num_active, dtype, device)


class ExpertsBlock:
    """A mixture of experts."""

    def __init__(self, mlp: Experts, scratch: ExpertsScratch) -> None:
        self._router, self._experts = matrix_of(mlp.router), experts_of(mlp)
        self._normalize = mlp.spec.normalize_topk
        self._scratch = scratch

    def __call__(self, x: Tensor, out: Tensor, *, invariant: bool) -> None:
        scratch, count = self._scratch, len(x)
        logits, ids, weights = scratch.logits[:count], scratch.ids[:count], scratch.weights[:count]
        self._router.apply_into(x, logits, invariant=invariant)
        route(logits, ids, weights, normalize=self._normalize)
        self._experts.apply_into(x, ids, weights, out, buffers=scratch.buffers)


def experts_of(mlp: Experts) -> DeviceExperts:
    """What carries the experts out; see ``matrix_of``."""
    assert isinstance(mlp.method, DeviceExperts)
    return mlp.method


def make_blocks(decoder: Decoder, max_tokens: int) -> list[Block]:
    """A runner for every layer; those of a kind share what lies between their products."""
    config, dtype, device = decoder.config, decoder.dtype, decoder.device
    gated = GatedScratch(max_tokens, config.intermediate_size if config.num_dense_layers else 0, dtype, device)
    mixtures = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, Experts)]
    routed = ExpertsScratch(mixtures[0], max_tokens, dtype, device) if mixtures else None
    blocks: list[Block] = []
    for layer in decoder.layers:
        if isinstance(layer.mlp, GatedMLP):
            blocks.append(GatedBlock(layer.mlp, gated))
        else:
            assert routed is not None
            blocks.append(ExpertsBlock(layer.mlp, routed))
    return blocks
