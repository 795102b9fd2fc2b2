"""The ledger for a GPU: weights, pool and every buffer are what it foresaw, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill import launch
from tokenmill.bench.gpu.shapes import LLAMA_8B, QWEN_EXPERTS, QWEN_SMALL, REAL, TOY, write_config
from tokenmill.core.engine_config import EngineConfig, SchedulerConfig
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import Precision
from tokenmill.kernels.triton import attention
from tokenmill.kernels.triton.attention import AttentionBuffers
from tokenmill.kernels.triton.device import H200, chip, is_interpreted
from tokenmill.kernels.triton.tiles import workspace
from tokenmill.perf import device_memory
from tokenmill.perf.device_memory import workspace_lines
from tokenmill.perf.memory import Ledger

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")


def _tensors(thing: object, seen: set[int]) -> int:
    """Bytes of all tensors that ``thing`` holds, also in what it holds; on the device alone (none is pinned)."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type(None))):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return 0 if thing.is_pinned() else thing.untyped_storage().nbytes()
    names = [*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())]
    parts = [getattr(thing, name) for name in names if hasattr(thing, name)]
    if isinstance(thing, dict):
        parts += thing.values()
    elif isinstance(thing, (list, tuple)):
        parts += thing
    return sum(_tensors(part, seen) for part in parts)


def _line(ledger: Ledger, name: str) -> int:
    return sum(item.num_bytes for item in ledger.items if item.name == name)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (LLAMA_8B, {"weights": "bf16"}),
        (LLAMA_8B, {"weights": "int4", "lm_head": "int8"}),
        (LLAMA_8B, {"weights": "fp8", "kv": "fp8"}),
        (QWEN_SMALL, {"weights": "int8"}),
        (QWEN_EXPERTS, {"weights": "bf16"}),
        (QWEN_EXPERTS, {"weights": "fp8"}),
    ],
)
def test_everything_is_foreseen(
    shape: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_config(tmp_path / "model", TOY[shape] | {"num_hidden_layers": 2})
    config = EngineConfig.from_options(
        model=str(folder), device="cuda", random_weights=True, num_blocks=20, max_context=70, max_seqs=5,
        max_step_tokens=40, **options,
    )  # fmt: skip
    multiprocessors = 2 if is_interpreted() else chip().num_multiprocessors
    monkeypatch.setattr(device_memory, "MULTIPROCESSORS", multiprocessors)
    checkpoint = launch.inspect(config)
    ledger = checkpoint.ledger
    model, weights_bytes, kv_bytes = launch.load_model(config, checkpoint, launch.Silent())
    assert weights_bytes == ledger.group_bytes("weights")
    assert kv_bytes == ledger.group_bytes("kv")
    assert _line(ledger, "products") == workspace(model.decoder.device).num_bytes

    inputs, sampling = model.inputs, model.sampling
    assert _line(ledger, "attention's parts and lists") == sum(each.num_bytes for each in model.attention.values())
    assert _line(ledger, "sampling") == sampling.num_bytes
    results = model.results.token_ids.nbytes
    assert _line(ledger, "block tables and inputs") == inputs.num_bytes + model._pairs.nbytes + results
    rotary = model.decoder.rotary
    assert _line(ledger, "rotary tables") == rotary.cos.nbytes + rotary.sin.nbytes + model._angles.nbytes
    between = _tensors(model.buffers, set()) + _tensors(model._blocks[0]._scratch, set())
    assert sum(_line(ledger, name) for name in ("step buffers", "logits", "experts' rows")) == between


@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_attention_at_real_sizes(head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an H200, which has more programs and so more partial results than the interpreter."""
    monkeypatch.setattr(attention, "is_interpreted", lambda: False)
    monkeypatch.setattr(attention, "chip", lambda: H200)
    fields = REAL[LLAMA_8B] | {"head_dim": head_dim, "num_hidden_layers": 1}
    config, scheduler = ModelConfig.from_hf(fields), SchedulerConfig(max_seqs=256, max_step_tokens=8192)
    precision = Precision("fast", "bf16", "bf16", "bf16", device="cuda")
    lines = {line[1]: line[2] for line in workspace_lines(config, precision, scheduler, 4096, 16)}
    buffers = AttentionBuffers(config.num_heads, config.num_kv_heads, head_dim, 16, 8192, 256, 256, device="cpu")
    assert lines["attention's parts and lists"] == buffers.num_bytes
