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
        raise NotImplementedError
