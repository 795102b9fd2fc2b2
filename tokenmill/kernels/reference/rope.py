"""Rotary position embedding (arXiv 2104.09864): the tables of angles, and the rotation.

Frequencies follow ``transformers`` in float32, so that angles are equal to its own; cosines and sines are
taken in float64 and rounded. The table is computed once: a position's entry never depends on a step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenmill.core.model_config import RopeSpec


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions: ``[head_dim / 2]`` float32."""
    wavelengths = spec.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    plain = 1.0 / wavelengths
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        ramp = _yarn_ramp(spec, head_dim)
        return (1.0 / (spec.factor * wavelengths)) * ramp + plain * (1 - ramp)
    return plain


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Stretch long wavelengths, keep short ones, blend in between (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    low, high = spec.low_freq_factor, spec.high_freq_factor
    keep = (spec.original_context / wavelength - low) / (high - low)
    blended = (1 - keep) * plain / spec.factor + keep * plain
    stretched = torch.where(wavelength > spec.original_context / low, plain / spec.factor, plain)
    between = (wavelength <= spec.original_context / low) & (wavelength >= spec.original_context / high)
    return torch.where(between, blended, stretched)


def _yarn_ramp(spec: RopeSpec, head_dim: int) -> Tensor:
    """Per pair of dimensions: 0 keeps its frequency, 1 stretches it in full (YaRN, arXiv 2309.00071)."""

    def dimension(turns: float) -> float:
        """The dimension that turns so often within the trained context."""
        return head_dim * math.log(spec.original_context / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def rotary_table(spec: RopeSpec, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines by absolute position: two of ``[num_positions, head_dim / 2]`` float32."""
    frequencies = inverse_frequencies(spec, head_dim)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies).double()
    scale = spec.attention_factor
    return angles.cos().float() * scale, angles.sin().float() * scale


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(x[i], x[i + d/2])`` of each head: ``x [T, heads, d]``, ``cos`` and ``sin [T, d/2]``."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
