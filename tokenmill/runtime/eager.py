"""``EagerModel``: the decoder's layers called one operation at a time. Plain, and the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels import ops
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder
from tokenmill.runtime.inputs import StepInputs
from tokenmill.runtime.step_model import Draws, InPlace
from tokenmill.runtime.table import Row


class EagerModel(InPlace):
    """A ``StepModel`` over a decoder and its KV tensors; nothing else may write those."""

    def __init__(self, decoder: Decoder, kv: KVTensors) -> None:
        self.decoder = decoder
        self.kv = kv
        self._hidden: Tensor | None = None

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def block_size(self) -> int:
        return self.kv.block_size

    @property
    def max_context(self) -> int:
        return self.decoder.max_context

    @property
    def num_blocks(self) -> int:
        return self.kv.num_blocks

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
        inputs = StepInputs.build(rows, self.config, block_size=self.block_size, device=self.decoder.device)
        self._hidden = self.decoder.forward(inputs.token_ids, inputs.batch.positions, inputs.batch, self.kv)

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        assert self._hidden is not None, "no step was computed"
        return self.decoder.logits(self._hidden[list(tokens)]).cpu()  # tokens are chosen on the host

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int]) -> Tensor:
        assert self._hidden is not None, "no step was computed"
        return self._hidden[list(tokens)].float().cpu()

    def choose(self, draws: Draws | None) -> None:
        return None

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        ops.copy_blocks(self.kv, pairs)

    def poison(self, block_ids: Iterable[int]) -> None:
        index = list(block_ids)
        for tensor in (*self.kv.keys, *self.kv.values):
            tensor.view(self.num_blocks, self.block_size, *tensor.shape[1:])[index] = math.nan
