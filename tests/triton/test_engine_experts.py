"""``test_engine`` for a mixture of experts: answers of the reference, and the same bits in any company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.triton.test_engine import BLOCK, CONTEXT, VOCAB, House, device_model, loaded, request
from tokenmill.core.precision import Precision
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.load import load_model
from tokenmill.runtime.eager import EagerModel
from tokenmill.testing import checkpoints

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, of five experts: the interpreter takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LOGIT_STD", 2.4)
        return checkpoints.make_checkpoint(
            tmp_path_factory.mktemp("experts"), "qwen3_moe", vocab_size=VOCAB, max_context=CONTEXT, hidden_size=32,
            intermediate_size=32, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=32, num_layers=1,
            num_heads=2, num_kv_heads=2, tokenizer=False,
        )  # fmt: skip


def test_greedy_answers_are_those_of_the_reference(folder: Path, device: torch.device) -> None:
    requests = [request(i, length, 2, deterministic=False) for i, length in enumerate((1, 19))]
    decoder = load_model(folder)
    wanted = House(EagerModel(decoder, KVTensors.allocate(decoder.config, 24, BLOCK))).run(requests)
    assert House(device_model(loaded(folder, device)), depth=2).run(requests) == wanted


def test_company_and_chunks_change_nothing(folder: Path, device: torch.device) -> None:
    """Two requests one after the other, then together and cut: a prompt of ten tokens goes in steps of seven."""
    house = House(device_model(loaded(folder, device)), chunk=7, prefix_caching=False)
    requests = [request(10 + i, 3 + 7 * i, 2, temperature=float(i)) for i in range(2)]
    for one in requests:
        house.run([one])
    house.run([replace(one, id=f"again {one.id}") for one in requests])
    for one in requests:
        assert house.answers[f"again {one.id}", 0] == house.answers[one.id, 0]


@pytest.mark.parametrize("form", ["float32", "int8", "int4", "fp8"])
def test_a_block_is_the_layer_of_the_reference(folder: Path, device: torch.device, form: str) -> None:
    """Of the same weights, as the form rounds them."""
    from tokenmill.models.quantization.device import DeviceScheme
    from tokenmill.runtime.gpu.mlp import make_blocks

    head = "float32" if form == "float32" else "bf16"
    precision = Precision("fast", form, head, "bf16", weight_only=form.startswith("int"), device="cuda")
    decoder = load_model(folder, scheme=DeviceScheme(precision, device))
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    block, out = make_blocks(decoder, 16)[0], torch.empty(9, 32, dtype=decoder.dtype, device=device)
    block(x.to(device, decoder.dtype), out, invariant=True)
    wanted = load_model(folder).layers[0].mlp(x)
    error = (out.cpu().float() - wanted).norm() / wanted.norm()
    assert error < {"float32": 1e-5, "int8": 0.03, "int4": 0.25, "fp8": 0.1}[form], error
