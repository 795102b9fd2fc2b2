"""``Decoder``: the transformer that all supported families share.

A residual stream runs through ``num_layers`` layers; each adds two corrections computed from a normalised
copy of it, attention and a gated MLP or a mixture of them. What differs between families is in the ``ModelConfig``
(biases, head norms, windows, rotary scaling, experts); how a checkpoint names its tensors is in ``families/``.

Everything a step needs comes as arguments; the only state that changes is the KV cache that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels.batch import AttentionBatch
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.layers.attention import Attention
from tokenmill.models.layers.destination import Destinations
from tokenmill.models.layers.embedding import Embedding
from tokenmill.models.layers.experts import APART, ExpertNames, Experts
from tokenmill.models.layers.mlp import GatedMLP
from tokenmill.models.layers.norm import RMSNorm
from tokenmill.models.layers.rotary import Angles, Rotary
from tokenmill.models.quantization.base import Plain, Scheme


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What a checkpoint calls a decoder's parts; ``{}`` in ``layer`` is the layer's number."""

    embedding: str
    layer: str
    attention: str
    attention_norm: str
    mlp: str
    mlp_norm: str
    final_norm: str
    lm_head: str
    experts: ExpertNames = APART
    ignored_suffixes: tuple[str, ...] = ()
    """Tensors ending so may be there and are not read."""


class Layer:
    """One layer: attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int, scheme: Scheme) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, scheme)
        self.attention = Attention(config, config.windows[index], scheme)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, scheme)
        experts = config.experts_of(index)
        self.mlp = GatedMLP(config, scheme) if experts is None else Experts(config, experts, scheme)

    def destinations(self, prefix: str, names: TensorNames) -> Destinations:
        mlp, at = self.mlp, prefix + names.mlp
        return {
            **self.attention_norm.destinations(prefix + names.attention_norm),
            **self.attention.destinations(prefix + names.attention),
            **self.mlp_norm.destinations(prefix + names.mlp_norm),
            **(mlp.destinations(at) if isinstance(mlp, GatedMLP) else mlp.destinations(at, names.experts)),
        }

    def parameters(self) -> list[Tensor]:
        norms = [*self.attention_norm.parameters(), *self.mlp_norm.parameters()]
        return [*norms, *self.attention.parameters(), *self.mlp.parameters()]

    def __call__(self, x: Tensor, angles: Angles, batch: AttentionBatch, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles, batch, k_cache, v_cache)
        return x + self.mlp(self.mlp_norm(x))


class Decoder:
    """A decoder-only transformer made from a ``ModelConfig``; its weights are uninitialised until loaded."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        scheme: Scheme | None = None,
        max_context: int | None = None,
    ) -> None:
        """``max_context``: longest sequence that will be served (sizes the rotary table); None: the model's own.

        ``scheme``: how the matrices are kept; None: plainly, in ``dtype`` on ``device``.
        """
        scheme = scheme or Plain(dtype, torch.device(device))
        self.config = config
        self.scheme = scheme
        self.dtype = scheme.dtype
        self.device = scheme.device
        self.max_context = max_context or config.max_context
        self.layers = [Layer(config, index, scheme) for index in range(config.num_layers)]
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, scheme)
        self.lm_head = Embedding(scheme.output(), scheme, config.vocab_size, config.hidden_size)
        self.embedding = self.lm_head
        if not config.tie_embeddings:
            self.embedding = Embedding(scheme.table(), scheme, config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config.rope, config.head_dim, self.max_context, device=self.device)

    def destinations(self, names: TensorNames) -> Destinations:
        """Every tensor the checkpoint must hold, and where it goes."""
        found = self.embedding.destinations(names.embedding)
        for index, layer in enumerate(self.layers):
            found |= layer.destinations(names.layer.format(index), names)
        found |= self.norm.destinations(names.final_norm)
        if not self.config.tie_embeddings:
            found |= self.lm_head.destinations(names.lm_head)
        return found

    def parameters(self) -> list[Tensor]:
        """Every weight tensor once (a tied output matrix is the embedding); not the rotary table."""
        found = [*self.embedding.parameters(), *self.norm.parameters()]
        for layer in self.layers:
            found += layer.parameters()
        return found if self.lm_head is self.embedding else found + self.lm_head.parameters()

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, positions: Tensor, batch: AttentionBatch, kv: KVTensors) -> Tensor:
        """Compute a step's tokens and write their keys and values to ``kv``.

        ``token_ids``, ``positions``: ``[T]`` int64, the tokens of all rows one after the other (``positions`` are
        ``batch.positions`` unless a caller knows better; each below ``max_context``). Returns the normalised last
        hidden states: ``[T, hidden_size]`` in the model's dtype.
        """
        x = self.embedding(token_ids)
        angles = self.rotary.at(positions)
        for layer, k_cache, v_cache in zip(self.layers, kv.keys, kv.values, strict=True):
            x = layer(x, angles, batch, k_cache, v_cache)
        return self.norm(x)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, ``[S, hidden_size]`` to ``[S, vocab_size]`` float32 (not normalised)."""
        return self.lm_head.logits(hidden)
