"""Float8 e4m3: conversion to and from float32 inside kernels, on any chip.

One sign bit, four of exponent (bias 7), three of mantissa; the largest number is 448, 0x7f is NaN and there is no
infinity (OCP 8-bit floating point specification 1.0). Chips that have instructions for it use them; elsewhere integers
do: adding a number whose last place is the code's last place makes the float32 addition round to it.

Kernels see codes as uint8: Triton refuses pointers to e4m3 on chips without it.
"""

from __future__ import annotations

import triton
import triton.language as tl

E4M3_MAX = 448.0


@triton.jit
def encode_e4m3(x, NATIVE: tl.constexpr):
    """Codes (uint8) of float32 numbers, rounded to nearest even; what exceeds 448 becomes 448, NaN stays."""
    if NATIVE:
        code = (
            tl.clamp(x, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv).to(tl.uint8, bitcast=True)
        )
    else:
        bits = x.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        # Normal numbers, from 2^-6: round at bit 20, rebase the exponent from 127 to 7.
        rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
        normal = (rounded >> 20) - ((127 - 7) << 3)
        # Below: multiples of 2^-9, which is the last place of 2^14.
        lifted = magnitude.to(tl.float32, bitcast=True) + 16384.0
        subnormal = lifted.to(tl.uint32, bitcast=True) - 0x46800000
        code = tl.where(magnitude < 0x3C800000, subnormal, normal)
        code = tl.where(magnitude > 0x43E00000, 0x7E, code)
        code = tl.where(magnitude > 0x7F800000, 0x7F, code)
        code = (code | ((bits >> 24) & 0x80)).to(tl.uint8)
    return code


@triton.jit
def decode_e4m3(code, NATIVE: tl.constexpr):
    """Float32 numbers of codes (uint8)."""
    if NATIVE:
        x = code.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        wide = code.to(tl.uint32)
        magnitude = wide & 0x7F
        normal = ((magnitude << 20) + ((127 - 7) << 23)).to(tl.float32, bitcast=True)
        x = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
        x = tl.where(magnitude == 0x7F, float("nan"), x)
        x = tl.where((wide & 0x80) != 0, -x, x)
    return x
