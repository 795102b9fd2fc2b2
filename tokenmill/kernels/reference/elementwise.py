"""Exponentials whose bits do not depend on company: ``exp`` and the gated activation.

PyTorch computes transcendental functions of float32 in blocks of vectors and finishes the remainder with
other code, whose last bit may differ; ranges of more than 32,768 elements are cut at places that depend on
the number of threads. So ``exp`` here runs in slices that are whole blocks and small enough never to be cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64
_SLICE = 511 * _BLOCK  # the largest whole number of blocks under 32,768


def exp(x: Tensor) -> Tensor:
    """e**x, float32, any shape; the bits of an element depend on its value alone."""
    flat = x.contiguous().view(-1)
    num_whole = flat.numel() // _BLOCK * _BLOCK
    out = torch.empty_like(flat)
    for begin in range(0, num_whole, _SLICE):
        end = min(begin + _SLICE, num_whole)
        torch.exp(flat[begin:end], out=out[begin:end])
    num_rest = flat.numel() - num_whole
    if num_rest:
        block = flat.new_zeros(_BLOCK)
        block[:num_rest] = flat[num_whole:]
        out[num_whole:] = block.exp_()[:num_rest]
    return out.view(x.shape)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's middle: ``silu(gate) * up`` for ``[T, 2 * n]`` whose halves are gate and up; returns ``[T, n]``."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    gate = gate.contiguous()
    return (gate / (exp(-gate) + 1.0) * up).to(gate_up.dtype)
