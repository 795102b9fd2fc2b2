"""The matrix products at the shapes of Llama-3.1-8B and Qwen3-0.6B, each with few rows, some and many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tokenmill.kernels.triton.linear import Weight, linear, linear_silu_mul
from tokenmill.kernels.triton.linear_fp8 import quantize_rows
from tokenmill.kernels.triton.linear_int import write_out
from tokenmill.kernels.triton.quantize import Fp8Weight, PackedWeight

SHAPES = {"qkv 8B": (6144, 4096, (16, 64, 400)), "down 8B": (4096, 14336, (16,)), "qkv 0.6B": (4096, 1024, (16,))}
"""Outputs, inputs, numbers of rows."""
GATED = {"gate, up 8B": (28672, 4096, (16, 400)), "gate, up 0.6B": (6144, 1024, (16,))}


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    for form in ("bf16", "int4", "int8", "fp8"):
        for name, (width, in_size, numbers) in SHAPES.items():
            weight = _weight(form, width, in_size)
            for rows in numbers:
                x, out = _values(rows, in_size), _values(rows, width)
                yield f"{form}, {name}, {rows} rows", partial(linear, x, weight, out, invariant=form == "bf16")
                if form in ("int4", "int8") and rows == 400:
                    yield f"{form}, {name}, {rows} rows, invariant", partial(linear, x, weight, out, invariant=True)
        for name, (width, in_size, numbers) in GATED.items():
            weight = _weight(form, width, in_size)
            for rows in numbers:
                x, out, gate_up = _values(rows, in_size), _values(rows, width // 2), _values(rows, width)
                call = partial(linear_silu_mul, x, weight, out, gate_up=gate_up, invariant=True)
                yield f"{form}, {name}, {rows} rows", call
    weight = _weight("int4", 4096, 4096)
    assert isinstance(weight, PackedWeight)
    yield "int4, written out", partial(write_out, weight, 0, _values(4096, 4096))
    codes = torch.empty(512, 14336, dtype=torch.uint8)
    yield "rows to fp8", partial(quantize_rows, _values(512, 14336), codes, torch.empty(512))


def _values(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def _weight(form: str, width: int, in_size: int) -> Weight:
    if form == "bf16":
        return _values(width, in_size)
    if form == "fp8":
        return Fp8Weight.allocate(width, in_size, "cpu")
    return PackedWeight.allocate(form, width, in_size, 128, "cpu")
