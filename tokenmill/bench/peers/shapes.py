"""Random checkpoints at the shapes of real models: speed depends on shapes, not on what the weights say.

Rotary scaling is left out: it changes a table of angles, not the work. The built-in model's tokenizer lies beside the
weights because loaders ask for one; the benchmark speaks in token ids alone.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from tokenmill.testing.checkpoints import tensor_shapes

_TOKENIZER = Path(__file__).resolve().parents[2] / "builtin" / "story"
_COMMON = {"hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16", "tie_word_embeddings": True}
_STD = 0.02

MODELS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _COMMON
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "llama-3.2-1b": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
"""Name → ``config.json``."""


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """K and V of one token over all layers, two bytes a value."""
    return int(4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


def weight_bytes(config: dict[str, Any]) -> int:
    """All weights at two bytes each."""
    return 2 * sum(math.prod(shape) for shape in tensor_shapes(config).values())


def make_checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """Write ``config`` with random bfloat16 weights to ``folder``, unless it is there already; returns ``folder``."""
    text = json.dumps(config, indent=2) + "\n"
    if (folder / "config.json").exists() and (folder / "config.json").read_text(encoding="utf-8") == text:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_TOKENIZER / name, folder / name)
    _write_weights(folder / "model.safetensors", config)
    (folder / "config.json").write_text(text, encoding="utf-8")  # last: it says that the rest is complete
    return folder


def _write_weights(path: Path, config: dict[str, Any]) -> None:
    import torch

    shapes = tensor_shapes(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    chance = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = torch.ones(shape) if "norm" in name else torch.randn(shape, generator=chance).mul_(_STD)
            tensor.bfloat16().view(torch.int16).numpy().tofile(file)
