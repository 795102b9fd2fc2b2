"""Which architectures are served, and how their checkpoints name tensors. One line each."""

from __future__ import annotations

from collections.abc import Mapping

from tokenmill.models.decoder import TensorNames
from tokenmill.models.families import experts, llama

TENSOR_NAMES: Mapping[str, TensorNames] = {
    "LlamaForCausalLM": llama.NAMES,
    "MistralForCausalLM": llama.NAMES,
    "Qwen2ForCausalLM": llama.NAMES,
    "Qwen3ForCausalLM": llama.NAMES,
    "Qwen3MoeForCausalLM": experts.QWEN3_MOE,
    "MixtralForCausalLM": experts.MIXTRAL,
}
