"""``ModelConfig.from_hf``: real configurations, what each family leaves implicit, and bombs (MF-06)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenmill.core.errors import CheckpointError, NotSupported
from tokenmill.core.model_config import SUPPORTED_ARCHITECTURES, ModelConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


def parse(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf({**LLAMA, "architectures": [architecture], **changes})


# Published parameter counts (model cards), in units of the last digit given.
PUBLISHED = {
    "Meta-Llama-3.1-8B.json": 8_030_261_248,
    "Meta-Llama-3.1-70B.json": 70_553_706_496,
    "Qwen3-0.6B.json": 596_049_920,
    "isim-llama-2-7b-hf.json": 6_738_415_616,
    "mlc-mistral_7b.json": 7_241_732_096,
    "isim-qwen2.5-7b-instruct.json": 7_615_616_512,
    "mlc-llama3_2_1b.json": 1_235_814_400,
}


def test_every_real_configuration_of_these_families(shared: Path) -> None:
    seen: dict[str, int] = dict.fromkeys(SUPPORTED_ARCHITECTURES, 0)
    for file in sorted((shared / "data" / "configs").glob("*.json")):
        raw = json.loads(file.read_text())
        named = (raw.get("architectures") or ["none"])[0]
        if named not in SUPPORTED_ARCHITECTURES:
            with pytest.raises((NotSupported, CheckpointError)):
                ModelConfig.from_hf(raw)
            continue
        config = ModelConfig.from_hf(raw)
        seen[named] += 1
        assert config.num_layers == raw["num_hidden_layers"] == len(config.windows)
        assert config.num_parameters == PUBLISHED.get(file.name, config.num_parameters), file.name
    assert all(seen.values()), seen


def test_equals_huggingface_on_defaults() -> None:
    """What an absent field means is what ``transformers`` takes it for."""
    transformers = pytest.importorskip("transformers")
    sizes = {key: LLAMA[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    for family in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        theirs = getattr(transformers, f"{family}Config")(**sizes, num_attention_heads=32)
        raw = {**sizes, "architectures": [f"{family}ForCausalLM"], "num_attention_heads": 32}
        ours = ModelConfig.from_hf(raw)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == getattr(theirs, "head_dim", 64 // 32)
        assert ours.max_context == theirs.max_position_embeddings
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
        assert ours.windows == (theirs.sliding_window if family == "Mistral" else None,) * 2
        assert ours.tie_embeddings == theirs.tie_word_embeddings
        assert ModelConfig.from_hf({**theirs.to_dict(), "architectures": raw["architectures"]}).windows == ours.windows


def test_windows() -> None:
    assert parse("MistralForCausalLM", sliding_window=8).windows == (8, 8)
    assert parse("MistralForCausalLM", sliding_window=None).windows == (None, None)
    assert parse("LlamaForCausalLM", sliding_window=8).windows == (None, None)
    qwen = {"use_sliding_window": True, "sliding_window": 8}
    assert parse("Qwen2ForCausalLM", **qwen, max_window_layers=1).windows == (None, 8)
    by_layer = ["sliding_attention", "full_attention"]
    assert parse("Qwen3ForCausalLM", **qwen, head_dim=16, layer_types=by_layer).windows == (8, None)
    assert parse("Qwen2ForCausalLM", sliding_window=8).windows == (None, None)


def test_rope_in_both_spellings() -> None:
    old = parse(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}).rope
    new = parse(rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}).rope
    assert old == new
    assert (old.kind, old.theta, old.factor) == ("linear", 5e5, 2.0)


def test_ends_and_sizes() -> None:
    config = parse(eos_token_id=[7, 8], bos_token_id=1)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (7, 8))
    assert parse(eos_token_id=7).eos_token_ids == (7,)
    assert parse(eos_token_id=None).eos_token_ids == ()
    assert ModelConfig.from_hf(LLAMA).parameter_counts()["lm_head"] == 512 * 64
    assert parse(tie_word_embeddings=True).parameter_counts()["lm_head"] == 0


def test_unsupported_is_named_with_what_is_supported() -> None:
    with pytest.raises(NotSupported, match=r"'GPT2LMHeadModel' is not supported; supported: LlamaForCausalLM, Mis"):
        parse("GPT2LMHeadModel")
    with pytest.raises(NotSupported, match="'gelu'"):
        parse(hidden_act="gelu")
    with pytest.raises(NotSupported, match="'dynamic'"):
        parse(rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(NotSupported, match="by layer type"):
        parse(rope_parameters={"full_attention": {"rope_type": "default"}})


BOMBS: list[tuple[str, dict[str, Any]]] = [
    ("hidden_size", {"hidden_size": 2**31}),
    ("hidden_size", {"hidden_size": 10**4000}),
    ("hidden_size", {"hidden_size": -64}),
    ("hidden_size", {"hidden_size": 0}),
    ("hidden_size", {"hidden_size": 64.0}),
    ("hidden_size", {"hidden_size": "64"}),
    ("hidden_size", {"hidden_size": True}),
    ("hidden_size", {"hidden_size": None}),
    ("hidden_size", {"hidden_size": [64]}),
    ("hidden_size", {"hidden_size": 65}),
    ("num_hidden_layers", {"num_hidden_layers": 10**9}),
    ("vocab_size", {"vocab_size": 2**40}),
    ("intermediate_size", {"intermediate_size": 2**50}),
    ("max_position_embeddings", {"max_position_embeddings": 2**40}),
    ("num_attention_heads", {"num_attention_heads": 0}),
    ("num_attention_heads", {"num_attention_heads": 2**20}),
    ("num_key_value_heads", {"num_key_value_heads": 3}),
    ("num_key_value_heads", {"num_key_value_heads": 2**20}),
    ("head_dim", {"head_dim": 2**20}),
    ("head_dim", {"head_dim": 15}),
    ("rms_norm_eps", {"rms_norm_eps": float("nan")}),
    ("rms_norm_eps", {"rms_norm_eps": -1e-6}),
    ("rope_theta", {"rope_theta": float("inf")}),
    ("rope_theta", {"rope_theta": 0}),
    ("rope_theta", {"rope_theta": "10000"}),
    ("rope_scaling", {"rope_scaling": "linear"}),
    ("rope_scaling.factor", {"rope_scaling": {"type": "linear"}}),
    ("rope_scaling.factor", {"rope_scaling": {"type": "linear", "factor": float("inf")}}),
    ("rope_scaling.factor", {"rope_scaling": {"type": "linear", "factor": 0}}),
    ("high_freq_factor", {"rope_scaling": {"type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0}}),
    ("tie_word_embeddings", {"tie_word_embeddings": "yes"}),
    ("eos_token_id", {"eos_token_id": -1}),
    ("eos_token_id", {"eos_token_id": list(range(10**5))}),
    ("architectures", {"architectures": "LlamaForCausalLM"}),
    ("architectures", {"architectures": []}),
    ("quantization_config", {"quantization_config": "fp8"}),
    ("sliding_window", {"architectures": ["MistralForCausalLM"], "sliding_window": 0}),
    (
        "layer_types",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "use_sliding_window": True,
            "layer_types": ["full_attention", {"nested": 1}],
        },
    ),
]


@pytest.mark.parametrize(("field", "changes"), BOMBS, ids=lambda value: value if isinstance(value, str) else "")
def test_mf_06_bombs_are_refused_by_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=field) as caught:
        ModelConfig.from_hf({**LLAMA, **changes})
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200


def test_missing_fields_are_named() -> None:
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        with pytest.raises(CheckpointError, match=f"{field} is missing"):
            ModelConfig.from_hf({key: value for key, value in LLAMA.items() if key != field})


def test_reading_a_configuration_needs_no_torch() -> None:
    code = "import sys, tokenmill.models.config_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
