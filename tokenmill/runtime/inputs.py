"""From the rows of a step to the decoder's tensors. All tokens of a step lie one after the other, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels.batch import AttentionBatch
from tokenmill.runtime.table import Row


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the decoder is called with."""

    token_ids: Tensor  # [T] int64
    batch: AttentionBatch

    @classmethod
    def build(
        cls, rows: Sequence[Row], config: ModelConfig, *, block_size: int, device: torch.device | str
    ) -> StepInputs:
        token_ids = [token for row in rows for token in row.entry.token_ids[row.start : row.end]]
        batch = AttentionBatch.build(
            config,
            [row.start for row in rows],
            [row.end - row.start for row in rows],
            [row.entry.block_ids for row in rows],
            block_size=block_size,
            device=device,
        )
        return cls(torch.tensor(token_ids, dtype=torch.int64, device=device), batch)
