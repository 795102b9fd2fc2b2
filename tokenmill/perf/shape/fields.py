"""Typed, bounded access to the fields of a ``config.json`` under the names that families give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.core.errors import CheckpointError

MAX_SIZE = 2**26
"""Of any field: what is larger is a mistake, and would make counts absurd."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head",),
    "num_key_value_heads": ("n_head_kv", "num_kv_heads"),
    "head_dim": ("kv_channels",),
    "intermediate_size": ("n_inner", "ffn_hidden_size", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "seq_length", "n_ctx", "max_sequence_length"),
    "vocab_size": ("padded_vocab_size",),
    "num_experts": ("num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token", "top_k_experts", "num_experts_per_token", "moe_top_k"),
    "shared_size": ("shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim"),
}


class Fields:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def get(self, name: str) -> Any:
        """The field, under this name or another; None if it is absent or null."""
        for alias in (name, *ALIASES.get(name, ())):
            if self._config.get(alias) is not None:
                return self._config[alias]
        return None

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.optional(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"config.json: {name} is missing")
        return value

    def optional(self, name: str) -> int | None:
        """A positive integer; None if it is absent. 0 counts as absent where the format uses it so."""
        value = self.get(name)
        if value is None or value is False:
            return None
        if type(value) is not int or not 0 <= value <= MAX_SIZE:
            shown = repr(value)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise CheckpointError(f"config.json: {name} must be an integer between 0 and {MAX_SIZE}, not {shown}")
        return value or None

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise CheckpointError(f"config.json: {name} must be true or false, not {str(value)[:40]!r}")
        return value
