"""Tiny random checkpoints of every family, as files: ``config.json`` and ``model.safetensors``.

The model says nothing sensible, but says it firmly: the output matrix is scaled so that the likeliest token
leads by several nats as a rule and no two tokens tie, so that tests may compare tokens between programs
whose arithmetic differs in the last bits. Weights depend on the seed alone, not on a library's version.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from array import array
from pathlib import Path
from typing import Any

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
EXPERT_FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
LOGIT_STD = 16.0

_TOKENIZER = Path(__file__).resolve().parents[1] / "builtin" / "story"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def make_checkpoint(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    intermediate_size: int = 128,
    vocab_size: int = 4096,
    max_context: int = 2048,
    tokenizer: bool = True,
    **config: Any,
) -> Path:
    """Write a random checkpoint of ``family`` to the folder ``path`` (made if need be) and return it.

    ``tokenizer``: lay the built-in model's tokenizer beside it (its 4,096 tokens want ``vocab_size`` 4096).
    ``config``: further fields of ``config.json``, as they are: ``sliding_window=8``, ``tie_word_embeddings=True``.
    """
    path.mkdir(parents=True, exist_ok=True)
    fields = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 2,
        **EXPERT_FIELDS.get(family, {}),
        **config,
    }
    (path / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    write_safetensors(path / "model.safetensors", _random_tensors(fields, random.Random(seed)))
    if tokenizer:
        for name in _TOKENIZER_FILES:
            shutil.copyfile(_TOKENIZER / name, path / name)
    return path


def tensor_shapes(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that a ``config.json`` of these families asks for."""
    hidden, inner, width = fields["hidden_size"], fields["intermediate_size"], fields["head_dim"]
    q_size, kv_size = fields["num_attention_heads"] * width, fields["num_key_value_heads"] * width
    qwen2, qwen3 = fields["model_type"] == "qwen2", fields["model_type"].startswith("qwen3")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (fields["vocab_size"], hidden)}
    for index in range(fields["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (size, hidden)
            if qwen2 or fields.get("attention_bias"):
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (size,)
            if qwen3 and name != "v":
                shapes[f"{layer}self_attn.{name}_norm.weight"] = (width,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, q_size)
        if fields.get("attention_bias"):
            shapes[f"{layer}self_attn.o_proj.bias"] = (hidden,)
        if has_experts(fields, index):
            shapes |= _expert_shapes(fields, layer)
        for name, shape in () if has_experts(fields, index) else _gated(hidden, inner):
            shapes[f"{layer}mlp.{name}_proj.weight"] = shape
            if fields.get("mlp_bias"):
                shapes[f"{layer}mlp.{name}_proj.bias"] = shape[:1]
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not fields["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (fields["vocab_size"], hidden)
    return shapes


def has_experts(fields: dict[str, Any], layer: int) -> bool:
    """Whether a layer's feed-forward part is a mixture of experts."""
    if fields["model_type"] == "mixtral":
        return True
    return (
        fields["model_type"] == "qwen3_moe"
        and (layer + 1) % fields["decoder_sparse_step"] == 0
        and layer not in fields["mlp_only_layers"]
    )


def _gated(hidden: int, inner: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    """The matrices of a gated MLP."""
    return ("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))


def _expert_shapes(fields: dict[str, Any], layer: str) -> dict[str, tuple[int, ...]]:
    """A router and its experts, by the names of the family."""
    mixtral = fields["model_type"] == "mixtral"
    hidden, block = fields["hidden_size"], "block_sparse_moe" if mixtral else "mlp"
    inner = fields["intermediate_size" if mixtral else "moe_intermediate_size"]
    num_experts = fields["num_local_experts" if mixtral else "num_experts"]
    called = {"gate": "w1", "up": "w3", "down": "w2"} if mixtral else {name: f"{name}_proj" for name, _ in _gated(1, 1)}
    shapes: dict[str, tuple[int, ...]] = {f"{layer}{block}.gate.weight": (num_experts, hidden)}
    for expert in range(num_experts):
        for name, shape in _gated(hidden, inner):
            shapes[f"{layer}{block}.experts.{expert}.{called[name]}.weight"] = shape
    return shapes


def _random_tensors(fields: dict[str, Any], chance: random.Random) -> dict[str, tuple[tuple[int, ...], array[float]]]:
    output = "model.embed_tokens.weight" if fields["tie_word_embeddings"] else "lm_head.weight"
    tensors = {}
    for name, shape in tensor_shapes(fields).items():
        mean, std = (1.0, 0.1) if "norm" in name else (0.0, 1.0 / math.sqrt(shape[-1]))
        if name == output:
            std *= LOGIT_STD  # hidden states leave the final norm with about one unit per channel
        elif name.endswith("embed_tokens.weight"):
            std = 1.0
        elif name.endswith("bias"):
            std = 0.1
        tensors[name] = (shape, array("f", [chance.gauss(mean, std) for _ in range(math.prod(shape))]))
    return tensors


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], array[float]]]) -> None:
    """Write float32 tensors, given as (shape, values), in the order of the dictionary."""
    header, begin = {}, 0
    for name, (shape, values) in tensors.items():
        end = begin + len(values) * values.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in tensors.values():
            values.tofile(file)
