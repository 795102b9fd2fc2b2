"""``AttentionBatch``: what attention must know of one step, made once and read by every layer.

Built from plain host lists, one entry per row of the step (see ``core/step.py``): row ``i`` computes the
token positions ``starts[i] … starts[i] + counts[i] - 1`` of a sequence whose blocks are ``block_tables[i]``.
The tokens of all rows lie one after the other in the order of the rows; ``T`` is their total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels import ops
from tokenmill.kernels.reference.attention import AttentionPlan


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Positions, slots and attention plans of one step."""

    positions: Tensor
    """``[T]`` int64: position of each token in its sequence."""
    slots: Tensor
    """``[T]`` int64: where each token's key and value are written."""
    plans: Mapping[int | None, AttentionPlan]
    """By sliding window; None: full attention."""

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        starts: Sequence[int],
        counts: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        *,
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> AttentionBatch:
        """Plan a step. A table must cover ``starts[i] + counts[i]`` positions; what it holds beyond is ignored."""
        tables = _padded(starts, counts, block_tables, block_size)
        starts_, counts_ = torch.tensor(starts, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64)
        rows = torch.arange(len(starts)).repeat_interleave(counts_)
        first_token = counts_.cumsum(0) - counts_
        positions = torch.arange(len(rows)) + (starts_ - first_token)[rows]
        slots = tables[rows, positions // block_size] * block_size + positions % block_size
        tables = tables.to(device)
        plans = {
            window: ops.plan_attention(
                starts,
                counts,
                tables,
                block_size=block_size,
                window=window,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
            )
            for window in dict.fromkeys(config.windows)
        }
        return cls(positions=positions.to(device), slots=slots.to(device), plans=plans)


def _padded(
    starts: Sequence[int], counts: Sequence[int], block_tables: Sequence[Sequence[int]], block_size: int
) -> Tensor:
    """The tables as ``[rows, max_blocks]`` int64, each cut to the blocks that its row reaches."""
    needed = [-(-(start + count) // block_size) for start, count in zip(starts, counts, strict=True)]
    width = max(needed, default=0)
    for row, (table, num_blocks) in enumerate(zip(block_tables, needed, strict=True)):
        if len(table) < num_blocks:
            raise ValueError(f"row {row}: {num_blocks} blocks are needed, the table holds {len(table)}")
    padded = [
        [*table[:num_blocks], *([0] * (width - num_blocks))]
        for table, num_blocks in zip(block_tables, needed, strict=True)
    ]
    return torch.tensor(padded, dtype=torch.int64).view(len(padded), width)
