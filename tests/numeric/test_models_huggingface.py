"""Every family against Hugging Face: logits, greedy tokens, prompts whole and in chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.numeric.models_support import Driver, random_tokens, relative_error
from tokenmill.core.model_config import ModelConfig
from tokenmill.models.load import load_model
from tokenmill.testing.checkpoints import FAMILIES, make_checkpoint

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"head_dim": 32, "num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-gqa-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "llama-linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama-yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "llama-3-to-1-heads": ("Llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "qwen2-bias": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied-window": (
        "Qwen3",
        {
            "head_dim": 32,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 70,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3-moe-some-dense": (
        "Qwen3Moe",
        EXPERTS
        | {"mlp_only_layers": [1], "num_hidden_layers": 4, "decoder_sparse_step": 2, "tie_word_embeddings": True},
    ),
    "qwen3-moe-window": ("Qwen3Moe", {**EXPERTS, "use_sliding_window": True, "sliding_window": 9}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 20}),
}


def make_theirs(case: str) -> Any:
    family, changes = CASES[case]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
            elif name.endswith("mlp.gate.weight"):
                parameter.normal_(0.0, 0.5)  # decided enough that no rounding sends a token elsewhere
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens(case: str, tmp_path: Path) -> None:
    theirs = make_theirs(case)
    theirs.save_pretrained(tmp_path)
    ours = Driver(load_model(tmp_path))
    prompt = random_tokens(150, 512)
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
    assert relative_error(ours.run(prompt), expected) < TOLERANCE
    assert relative_error(ours.run(prompt, chunks=(1, 2, 5, 64, 3, 1, 1, 20)), expected) < TOLERANCE

    start = prompt[:11]
    continued = theirs.generate(
        torch.tensor([start]), max_new_tokens=40, min_new_tokens=40, do_sample=False, eos_token_id=None
    )
    assert ours.greedy(start, 40) == continued[0, 11:].tolist()


def test_window_bites() -> None:
    """The windowed cases would not pass without the window: far tokens do change the unwindowed model."""
    windowed, plain = make_theirs("mistral-window"), make_theirs("mistral-no-window")
    prompt = torch.tensor([random_tokens(150, 512)])
    with torch.inference_mode():
        difference = relative_error(windowed(prompt).logits, plain(prompt).logits)
    assert difference > 100 * TOLERANCE


def test_sharded_and_upcast(tmp_path: Path) -> None:
    """Shards with an index, in bfloat16 and float16, loaded to float32: equal to Hugging Face upcast."""
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        make_theirs("qwen3").to(dtype).save_pretrained(folder, max_shard_size="200KB")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert len(list(folder.glob("*.safetensors"))) > 2
        ours = Driver(load_model(folder))
        prompt = random_tokens(40, 512)
        with torch.inference_mode():
            expected = theirs(torch.tensor([prompt])).logits[0]
        assert relative_error(ours.run(prompt), expected) < TOLERANCE


@pytest.mark.parametrize("case", ["qwen3-moe-some-dense", "mixtral"])
def test_experts_in_either_form(case: str, tmp_path: Path) -> None:
    """One tensor per expert and matrix, or stacked by layer: ``transformers`` writes both."""
    theirs = make_theirs(case)
    apart, stacked = tmp_path / "apart", tmp_path / "stacked"
    theirs.save_pretrained(apart)
    theirs.save_pretrained(stacked, save_original_format=False)
    loaded = [load_model(folder).parameters() for folder in (apart, stacked)]
    assert all(torch.equal(one, other) for one, other in zip(*loaded, strict=True))


def test_bfloat16_runs(tmp_path: Path) -> None:
    """Arithmetic in bfloat16 stays near float32 (8 bits of mantissa)."""
    make_theirs("llama3-rope").save_pretrained(tmp_path)
    prompt = random_tokens(40, 512)
    exact = Driver(load_model(tmp_path)).run(prompt)
    rough = Driver(load_model(tmp_path, dtype=torch.bfloat16)).run(prompt)
    assert rough.dtype == torch.float32
    assert relative_error(rough, exact) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_made_checkpoints_are_theirs_too(family: str, tmp_path: Path) -> None:
    """``testing.make_checkpoint`` writes what Hugging Face reads, sharp and without ties."""
    make_checkpoint(tmp_path, family, vocab_size=512, tokenizer=False)
    ours, theirs = load_model(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    prompt = random_tokens(60, 512)
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
    logits = Driver(ours).run(prompt)
    assert relative_error(logits, expected) < TOLERANCE
    lead = logits.topk(2).values
    assert (lead[:, 0] - lead[:, 1]).median() > 1.0
    assert all(row.unique().numel() == 512 for row in logits)


def test_parameters_are_counted_exactly(tmp_path: Path) -> None:
    for case in CASES:
        theirs = make_theirs(case)
        theirs.config.save_pretrained(tmp_path)
        config = {**json.loads((tmp_path / "config.json").read_text()), "architectures": [type(theirs).__name__]}
        assert ModelConfig.from_hf(config).num_parameters == theirs.num_parameters(), case
