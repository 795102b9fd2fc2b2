"""Mixtures of experts as files: what configurations say and must not, and tensors that are missing or misshapen."""

from __future__ import annotations

import json
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.core.errors import CheckpointError
from tokenmill.core.model_config import MAX_EXPERTS, ExpertsSpec, ModelConfig
from tokenmill.models.load import load_model
from tokenmill.models.weights.safetensors_file import SafetensorsFile
from tokenmill.perf.shape import shape_from_config, shape_of
from tokenmill.testing.checkpoints import make_checkpoint, write_safetensors

QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
}
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    **{name: QWEN3_MOE[name] for name in SHAPE},
}
SIZES: dict[str, Any] = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 64, "vocab_size": 128, "num_layers": 2}


def parse(**changes: Any) -> ModelConfig:
    return ModelConfig.from_hf({**QWEN3_MOE, **changes})


# ---- configurations --------------------------------------------------------------------------------------


def test_which_layers_have_experts() -> None:
    assert parse().experts == ExpertsSpec(8, 3, 48, False, (0, 1, 2, 3))
    assert parse(norm_topk_prob=True).experts == ExpertsSpec(8, 3, 48, True, (0, 1, 2, 3))
    sparse = parse(decoder_sparse_step=2, mlp_only_layers=[3, 0])
    assert sparse.experts is not None and sparse.experts.layers == (1,)
    assert [sparse.experts_of(layer) is not None for layer in range(4)] == [False, True, False, False]
    assert (sparse.num_dense_layers, parse().num_dense_layers) == (3, 0)
    assert parse(mlp_only_layers=None).num_dense_layers == 0
    assert ModelConfig.from_hf(MIXTRAL).experts == ExpertsSpec(4, 2, 128, True, (0, 1, 2, 3))


def test_transformers_5_calls_the_number_of_experts_otherwise() -> None:
    other = {name: value for name, value in QWEN3_MOE.items() if name != "num_experts"}
    assert ModelConfig.from_hf({**other, "num_local_experts": 8}) == parse()


def test_equals_huggingface_on_defaults() -> None:
    transformers = pytest.importorskip("transformers")
    for family, raw in (("Qwen3Moe", QWEN3_MOE), ("Mixtral", MIXTRAL)):
        given = {name: raw[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
        given |= {"num_attention_heads": 32, "num_local_experts": 8, "num_experts_per_tok": 2}
        given |= {"moe_intermediate_size": 48} if family == "Qwen3Moe" else {}
        theirs = getattr(transformers, f"{family}Config")(**given)
        ours = ModelConfig.from_hf({**given, "architectures": raw["architectures"]})
        assert ours.experts is not None
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == 64 // 32
        assert ours.max_context == theirs.max_position_embeddings
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
        assert ours.windows == (None,) * 4
        assert ours.experts.normalize_topk == getattr(theirs, "norm_topk_prob", True)
        assert ours.tie_embeddings == theirs.tie_word_embeddings


def test_windows() -> None:
    assert parse(sliding_window=8, max_window_layers=2).windows == (None,) * 4
    assert parse(sliding_window=8, max_window_layers=2, use_sliding_window=True).windows == (8,) * 4
    assert ModelConfig.from_hf({**MIXTRAL, "sliding_window": 8}).windows == (8,) * 4


PUBLISHED = {
    "Qwen3-30B-A3B.json": (30_532_122_624, 3_353_032_704),
    "Qwen3-235B-A22B.json": (235_093_634_560, 22_190_763_520),
    "Mixtral-8x7B-v0.1.json": (46_702_792_704, 12_879_925_248),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name: str, shared: Path) -> None:
    """All, and those that a token meets; the cost model's reader of configurations sees the same layers."""
    raw = json.loads((shared / "data" / "configs" / name).read_text())
    config = ModelConfig.from_hf(raw)
    shape = shape_of(config)
    assert (config.num_parameters, shape.active_parameters) == PUBLISHED[name]
    assert shape.num_parameters == config.num_parameters == sum(config.parameter_counts().values())
    assert shape.layers == shape_from_config(raw).layers


BOMBS: list[tuple[str, dict[str, Any]]] = [
    ("num_experts_per_tok 9 is above num_experts 8", {"num_experts_per_tok": 9}),
    ("num_experts_per_tok", {"num_experts_per_tok": 0}),
    ("num_experts_per_tok is missing", {"num_experts_per_tok": None}),
    ("num_experts", {"num_experts": 2**20}),
    ("num_experts", {"num_experts": True}),
    ("num_local_experts is missing", {"num_experts": None}),
    ("num_experts 1024 in each of num_hidden_layers 1000", {"num_experts": MAX_EXPERTS, "num_hidden_layers": 1000}),
    ("moe_intermediate_size is missing", {"moe_intermediate_size": None}),
    ("moe_intermediate_size", {"moe_intermediate_size": 2**40}),
    ("decoder_sparse_step", {"decoder_sparse_step": 0}),
    ("decoder_sparse_step", {"decoder_sparse_step": "1"}),
    ("mlp_only_layers", {"mlp_only_layers": 3}),
    ("mlp_only_layers", {"mlp_only_layers": [0, -1]}),
    ("mlp_only_layers", {"mlp_only_layers": [[0]]}),
    ("mlp_only_layers", {"mlp_only_layers": [2**40]}),
    ("norm_topk_prob", {"norm_topk_prob": 1}),
    ("intermediate_size is missing", {"intermediate_size": None}),
]


@pytest.mark.parametrize(("words", "changes"), BOMBS, ids=lambda value: value if isinstance(value, str) else "")
def test_mf_06_bombs_are_refused_by_field(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        parse(**changes)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200


# ---- tensors ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["qwen3_moe", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    sizes = SIZES | ({"moe_intermediate_size": 24} if request.param == "qwen3_moe" else {})
    return make_checkpoint(tmp_path / request.param, request.param, tokenizer=False, **sizes)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    file = SafetensorsFile(folder / "model.safetensors")
    return {name: file.tensor(name).clone() for name in file.entries}


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    values = {name: (tuple(tensor.shape), array("f", tensor.flatten().tolist())) for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", values)


def stack(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As ``transformers`` 5 writes them when it is told not to keep the original form."""
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    stacked = {name.replace("block_sparse_moe", "mlp"): tensor for name, tensor in stacked.items()}
    for layer in range(2):
        parts: dict[str, list[torch.Tensor]] = {"gate": [], "up": [], "down": []}
        called = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
        for name, tensor in tensors.items():
            if f"layers.{layer}." in name and ".experts." in name:
                parts[called[name.split(".")[-2]]].append(tensor)
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        stacked[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(gate_up)
        stacked[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack(parts["down"])
    return stacked


def test_stacked_experts_load_as_single_ones(folder: Path) -> None:
    single = load_model(folder)
    write(folder, stack(tensors_of(folder)))
    for ours, theirs in zip(load_model(folder).parameters(), single.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert sum(tensor.numel() for tensor in single.parameters()) == single.config.num_parameters


def test_ft_23_missing_and_misshapen_experts_are_named(folder: Path) -> None:
    tensors = tensors_of(folder)
    router = next(name for name in tensors if name.endswith("gate.weight") and "layers.1" in name)
    expert = next(name for name in tensors if ".1." in name and ".experts.2." in name)
    for name in (router, expert):
        write(folder, {other: tensor for other, tensor in tensors.items() if other != name})
        with pytest.raises(CheckpointError, match=f"lacks {name}"):
            load_model(folder)
    write(folder, {**tensors, expert: tensors[expert].t().contiguous()})
    with pytest.raises(CheckpointError, match=f"{expert} has shape"):
        load_model(folder)


def test_ft_23_stacked_experts_of_another_number_are_named(folder: Path) -> None:
    stacked = stack(tensors_of(folder))
    name = "model.layers.1.mlp.experts.down_proj"
    write(folder, {**stacked, name: stacked[name][:-1].contiguous()})
    with pytest.raises(CheckpointError, match=f"{name} has shape"):
        load_model(folder)
    write(folder, {other: tensor for other, tensor in stacked.items() if other != name})
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        load_model(folder)


def test_experts_beyond_the_configuration_are_named(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    field = "num_experts" if "num_experts" in raw else "num_local_experts"
    (folder / "config.json").write_text(json.dumps({**raw, field: raw[field] - 1}))
    with pytest.raises(CheckpointError, match=r"experts|gate\.weight"):
        load_model(folder)


def test_mf_06_as_many_experts_as_may_be_are_refused_in_a_moment(folder: Path) -> None:
    """A configuration of 32,768 experts with a file of a few: named by tensor, nothing allocated."""
    raw = json.loads((folder / "config.json").read_text())
    field = "num_experts" if "num_experts" in raw else "num_local_experts"
    changed = {field: MAX_EXPERTS, "num_hidden_layers": 32, "hidden_size": 2**16, "moe_intermediate_size": 2**14}
    (folder / "config.json").write_text(json.dumps(raw | changed))
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match="lacks"):
        load_model(folder)
    assert time.perf_counter() - began < 3
