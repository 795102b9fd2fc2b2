"""``Attention``: project, rotate, remember, attend, project back. Multi-head, multi-query and grouped alike."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels import ops
from tokenmill.kernels.batch import AttentionBatch
from tokenmill.models.layers.destination import Destinations
from tokenmill.models.layers.linear import Linear
from tokenmill.models.layers.norm import RMSNorm
from tokenmill.models.layers.rotary import Angles
from tokenmill.models.quantization.base import Scheme


class Attention:
    """One layer's attention; ``window``: how many positions back a token sees (None: all)."""

    def __init__(self, config: ModelConfig, window: int | None, scheme: Scheme) -> None:
        self.window = window
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        pieces = {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
        self.qkv = Linear(scheme.linear(), scheme, config.hidden_size, pieces, bias=config.qkv_bias)
        pieces = {"o_proj": config.hidden_size}
        self.out = Linear(scheme.linear(), scheme, config.q_size, pieces, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, scheme) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, scheme) if config.qk_norm else None

    def destinations(self, prefix: str) -> Destinations:
        found = {**self.qkv.destinations(prefix), **self.out.destinations(prefix)}
        if self.q_norm is not None and self.k_norm is not None:
            found |= self.q_norm.destinations(f"{prefix}q_norm") | self.k_norm.destinations(f"{prefix}k_norm")
        return found

    def parameters(self) -> list[Tensor]:
        found = [*self.qkv.parameters(), *self.out.parameters()]
        if self.q_norm is not None and self.k_norm is not None:
            found += [*self.q_norm.parameters(), *self.k_norm.parameters()]
        return found

    def __call__(self, x: Tensor, angles: Angles, batch: AttentionBatch, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """``x``: ``[T, hidden_size]``, to the same; writes the step's keys and values to the layer's caches."""
        qkv = self.qkv(x).view(len(x), -1, self.head_dim)
        q, k, v = torch.split(qkv, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = angles.rotate(q), angles.rotate(k)
        ops.write_kv(k, v, k_cache, v_cache, batch.slots)
        attended = ops.attention(q, k_cache, v_cache, batch.plans[self.window], self.scale)
        return self.out(attended.view(len(x), -1))
