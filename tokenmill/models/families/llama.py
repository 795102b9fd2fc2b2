"""Llama, and the families that are Llama but for what their configuration says.

Mistral adds a sliding window, Qwen2 biases on query, key and value, Qwen3 a norm on each query and key head;
all of that is in ``ModelConfig``, and their checkpoints name tensors alike.
"""

from __future__ import annotations

from tokenmill.models.decoder import TensorNames

NAMES = TensorNames(
    embedding="model.embed_tokens",
    layer="model.layers.{}.",
    attention="self_attn.",
    attention_norm="input_layernorm",
    mlp="mlp.",
    mlp_norm="post_attention_layernorm",
    final_norm="model.norm",
    lm_head="lm_head",
    ignored_suffixes=(".rotary_emb.inv_freq",),  # old checkpoints hold what is computed here
)
