"""The decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels.batch import AttentionBatch
from tokenmill.kernels.kv import KVTensors


class Decoder:
    """A decoder-only transformer, made from a ``ModelConfig``; weights are empty until loaded (``models/load.py``)."""

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device

    def forward(self, token_ids: Tensor, positions: Tensor, batch: AttentionBatch, kv: KVTensors) -> Tensor:
        """Compute a step's tokens and write their keys and values to ``kv``.

        ``token_ids``, ``positions``: ``[T]`` int64, all rows of the step one after the other (``positions`` is
        ``batch.positions`` unless a caller knows better). Returns the last hidden states, normalised:
        ``[T, hidden_size]``, in the model's dtype.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token: ``[S, hidden_size]`` to ``[S, vocab_size]`` float32."""
        raise NotImplementedError
