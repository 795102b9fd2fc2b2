"""``linear``: y = x Wᵀ + b for every form in which a matrix is kept on a GPU; ``linear_silu_mul``: for gate and up.

Plain matrices go to the vendor's library. How it cuts the work, and so the last bits of a row, depends on how many rows
there are; ``invariant`` asks for a kernel whose order of additions depends on the matrix's shape alone (``tiles.py``):
a row then has the same bits alone and among any others. Integers go to a kernel until rows are many (``linear_int.py``
says how many), FP8 always does; that kernel is invariant anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.kernels.triton import swiglu
from tokenmill.kernels.triton.linear_fp8 import linear_fp8
from tokenmill.kernels.triton.linear_int import PLAIN_ROWS, linear_int, write_out
from tokenmill.kernels.triton.linear_plain import linear_plain
from tokenmill.kernels.triton.quantize import Fp8Weight, PackedWeight
from tokenmill.kernels.triton.tiles import workspace

Weight = Tensor | PackedWeight | Fp8Weight
"""``[N, K]``: plain, in groups of integers, or in FP8."""


def linear(
    x: Tensor,
    weight: Weight,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
    invariant: bool = False,
) -> None:
    """``out [T, N] = x [T, K] Wᵀ + bias``, or ``out += …`` with ``accumulate``; ``bias [N]``.

    ``x``, ``out``: rows contiguous, float32 or bf16, and ``out`` may be float32 beside bf16, as logits are (the library
    cannot do that everywhere, so it is the kernels that do).
    ``invariant``: a row's bits depend neither on how many rows there are nor on its place among them.
    """
    if isinstance(weight, Fp8Weight):
        linear_fp8(x, weight, out, bias=bias, accumulate=accumulate)
    elif isinstance(weight, PackedWeight) and (invariant or out.dtype != x.dtype or len(x) < PLAIN_ROWS):
        linear_int(x, weight, out, bias=bias, accumulate=accumulate, invariant=invariant)
    elif isinstance(weight, PackedWeight):
        _written_out(x, weight, out, bias, accumulate)
    elif invariant or out.dtype != x.dtype:
        linear_plain(x, weight, out, bias=bias, accumulate=accumulate)
    else:
        _vendor(x, weight, out, bias, accumulate)


def linear_silu_mul(
    x: Tensor, weight: Weight, out: Tensor, *, gate_up: Tensor, bias: Tensor | None = None, invariant: bool = False
) -> None:
    """``out [T, N / 2] = silu(x gateᵀ) * (x upᵀ)``, gate and up being the halves of ``weight [N, K]``.

    ``gate_up [T, N]``: scratch for where the two are not joined in one kernel. For the rest see ``linear``.
    """
    if isinstance(weight, Fp8Weight):
        linear_fp8(x, weight, out, bias=bias, silu_mul=True)
    elif isinstance(weight, PackedWeight) and (invariant or len(x) < PLAIN_ROWS):
        linear_int(x, weight, out, bias=bias, invariant=invariant, silu_mul=True)
    elif isinstance(weight, Tensor) and invariant:
        linear_plain(x, weight, out, bias=bias, silu_mul=True)
    else:
        linear(x, weight, gate_up, bias=bias)
        swiglu.silu_mul(gate_up, out)


def _vendor(x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None, accumulate: bool) -> None:
    """By PyTorch, which asks cuBLAS or rocBLAS."""
    if accumulate:
        out.addmm_(x, weight.t())
        if bias is not None:
            out.add_(bias)
    elif bias is not None:
        torch.addmm(bias, x, weight.t(), out=out)
    else:
        torch.mm(x, weight.t(), out=out)


def _written_out(x: Tensor, weight: PackedWeight, out: Tensor, bias: Tensor | None, accumulate: bool) -> None:
    """Part by part of the outputs: written out in x's type, then by the library."""
    space = workspace(x.device).plain.view(x.dtype)
    most = len(space) // weight.in_size
    for first in range(0, weight.out_size, most):
        part = slice(first, min(first + most, weight.out_size))
        num = part.stop - first
        plain = space[: num * weight.in_size].view(num, weight.in_size)
        write_out(weight, first, plain)
        _vendor(x, plain, out[:, part], None if bias is None else bias[part], accumulate)
