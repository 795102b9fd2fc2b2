"""Running one CPU kernel on torch tensors."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenmill.kernels.cpu.isa import available_isas
from tokenmill.kernels.cpu.library import Pool, load
from tokenmill.kernels.cpu.program import Program, make_step
from tokenmill.kernels.cpu.records import Args, Quantized

each_isa = pytest.mark.parametrize("isa", [isa.name for isa in available_isas()])


@cache
def pool(isa: str, num_threads: int = 2) -> Pool:
    return load(isa).new_pool(num_threads)


def run(pool: Pool, kernel: str, args: Args, *, token_ids: list[int] | int) -> None:
    """One kernel over a step of these tokens (or so many), each of which wants an output."""
    ids = np.asarray(range(token_ids) if isinstance(token_ids, int) else token_ids, np.int32)
    tokens = np.arange(len(ids), dtype=np.int32)
    ends = np.array([0, len(ids)], np.int32)
    step = make_step(ids, tokens, tokens, ends, np.zeros((1, 1), np.int32), tokens)
    program = Program(pool.library)
    program.add(kernel, args)
    program.run(pool, step)


class QuantizedRows:
    """Activations ``[T, K]`` in 8 bits per row and group, as the kernels quantise them, and their values."""

    def __init__(self, x: Tensor, group: int) -> None:
        grouped = x.float().unflatten(1, (-1, group))
        peak = grouped.abs().amax(2)
        self.scales = torch.where(peak > 0, peak / 127, 1.0).contiguous()
        finite = grouped.isfinite().all(2)
        ints = (grouped / self.scales[:, :, None]).round()
        self.values = torch.where(finite[:, :, None], ints, 0.0).flatten(1).to(torch.int8).contiguous()
        self.sums = self.values.int().unflatten(1, (-1, group)).sum(2).int().contiguous()
        self.scales[~finite] = float("nan")

    def record(self, first: int = 0) -> Quantized:
        """Rows from ``first`` on."""
        return Quantized(self.values[first:].data_ptr(), self.scales[first:].data_ptr(), self.sums[first:].data_ptr())

    def dequantized(self) -> Tensor:
        group = self.values.shape[1] // self.scales.shape[1]
        return (self.values.double().unflatten(1, (-1, group)) * self.scales.double()[:, :, None]).flatten(1)
