"""Shapes of real models, and toy ones with the same parts: ``config.json`` by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenmill.bench.peers.shapes import MODELS

LLAMA_8B, QWEN_SMALL, QWEN_EXPERTS = "llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b"

REAL: dict[str, dict[str, Any]] = {
    LLAMA_8B: {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    QWEN_SMALL: MODELS["qwen3-0.6b"],
    QWEN_EXPERTS: {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
"""Rotary scaling is left out: it changes a table of angles, not the work."""

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 512,
}
_SMALL_EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}

TOY: dict[str, dict[str, Any]] = {
    name: config | _SMALL | (_SMALL_EXPERTS if "num_experts" in config else {}) for name, config in REAL.items()
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """``config.json`` and a tokenizer of a few words, without which no model is loaded; no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {f"word{number} ": number for number in range(64)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "word0 "},
    }
    for name, content in (("tokenizer.json", tokenizer), ("config.json", config)):
        (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return folder
