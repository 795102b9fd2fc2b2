"""The training-time model: Qwen3 in plain PyTorch, with nothing a language model of this size does not need.

A decoder-only transformer reads tokens x_1..x_n and gives, for each position, logits over the next token.
One layer adds two corrections to the residual stream h, each computed from a normalised copy of it::

    h = h + Attention(RMSNorm(h))
    h = h + SwiGLU(RMSNorm(h))

* RMSNorm(x) = g * x / sqrt(mean(x^2) + eps) keeps the scale of activations fixed without centring them.
* Attention has ``heads`` queries that share ``kv_heads`` keys and values (grouped-query attention: a smaller
  cache at inference).  Qwen3 normalises each query and key head before the rotation, which bounds the
  attention logits and so permits a high learning rate.
* Rotary position embedding turns each pair (x_i, x_{i+d/2}) by the angle p * theta^(-2i/d), so that the product
  of a query and a key depends only on the distance between them.
* SwiGLU(x) = W_down(silu(W_gate x) * W_up x).
* The output matrix is the embedding matrix (tied): at this size the embedding is a fifth of all parameters.

Parameter names are those of ``transformers.Qwen3ForCausalLM``; a state dict can be moved across unchanged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; the defaults that never vary between presets stand here once."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int = 4096
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (max_positions, head_dim), with the half-width table repeated twice."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.max_positions).float(), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i+d/2}) of the last axis; x is (batch, heads, length, head_dim)."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        query_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), cos, sin)
        return h + self.mlp(self.post_attention_layernorm(h))


class Trunk(nn.Module):
    """Embedding, layers and final norm: what ``transformers`` calls ``model``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)


class Qwen3(nn.Module):
    """The whole model; ``forward`` gives logits, ``loss`` the mean next-token cross-entropy in nats."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._init)
        # The residual stream sums 2 * layers outputs; shrinking each keeps its variance near one at the start.
        for layer in self.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(projection.weight, std=INIT_STD / (2 * config.layers) ** 0.5)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        h = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            h = layer(h, cos, sin)
        return F.linear(self.model.norm(h), self.model.embed_tokens.weight)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self(tokens).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def parameter_counts(self) -> tuple[int, int]:
        """(all parameters, parameters outside the embedding)."""
        total = sum(p.numel() for p in self.parameters())
        return total, total - self.model.embed_tokens.weight.numel()
