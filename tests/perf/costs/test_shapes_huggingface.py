"""Parameter counts of every family against the models of ``transformers`` (on the meta device: they take no memory)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tokenmill.perf.shape import shape_from_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
EXPERTS = {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2}
DEEPSEEK = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 1000}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 40,
    "num_hidden_layers": 4,
    "head_dim": 32,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "mistral": BASE,
    "qwen2": BASE,
    "qwen3": BASE | {"head_dim": 32},
    "qwen2_moe": BASE | EXPERTS | {"shared_expert_intermediate_size": 40},
    "qwen3_moe": BASE | EXPERTS | {"head_dim": 32},
    "qwen3_next": BASE | EXPERTS | DELTA,
    "mixtral": BASE | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "gpt_oss": BASE | {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 32},
    "gemma": BASE | {"head_dim": 32},
    "gemma2": BASE | {"head_dim": 32},
    "gemma3_text": BASE | {"head_dim": 32},
    "phi3": BASE | {"pad_token_id": 0},
    "olmo2": BASE,
    "cohere": BASE,
    "stablelm": BASE,
    "starcoder2": BASE,
    "phimoe": BASE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": BASE | DEEPSEEK | {"topk_method": "greedy", "head_dim": 8},
    "deepseek_v3": BASE | DEEPSEEK,
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 8},
    "gpt_bigcode": GPT | {"multi_query": True},
    "gpt_neox": {name: value for name, value in BASE.items() if name != "num_key_value_heads"},
    "minimax_m2": BASE | {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 32},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parameters(model_type: str) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(model_type, **FAMILIES[model_type])
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    wanted = sum(p.numel() for p in model.parameters())
    # Router corrections and inverse frequencies are buffers there.
    wanted += sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    written = config.to_dict() | {"tie_word_embeddings": config.tie_word_embeddings}
    assert shape_from_config(written).num_parameters == wanted
