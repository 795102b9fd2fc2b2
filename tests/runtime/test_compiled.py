"""The compiled model against the decoder run one operation at a time, on the same rounded weights; its host side."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.core.params import SamplingParams
from tokenmill.core.precision import Precision
from tokenmill.kernels.cpu.isa import available_isas
from tokenmill.kernels.cpu.kv import PagedKV
from tokenmill.kernels.cpu.library import load
from tokenmill.kernels.cpu.records import WeightFormat
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder
from tokenmill.models.load import load_model
from tokenmill.models.quantization.packed import PackedScheme
from tokenmill.runtime.compiled import CompiledModel
from tokenmill.runtime.eager import EagerModel
from tokenmill.runtime.sampling import SampledSequence
from tokenmill.runtime.step_model import StepModel
from tokenmill.runtime.table import Row, TableEntry
from tokenmill.testing.checkpoints import make_checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_heads": 4, "num_kv_heads": 4, "mlp_bias": True, "attention_bias": True},
    "mistral": {"sliding_window": 20, "num_heads": 6, "num_kv_heads": 2, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64, "tie_word_embeddings": True},
    "qwen3_moe": {"moe_intermediate_size": 96, "num_experts": 9, "norm_topk_prob": False, "mlp_only_layers": [0]},
    "mixtral": {"num_local_experts": 3},
}
FORMS = {
    "bf16": Precision("fast", "bf16", "bf16", "bf16"),
    "int8": Precision("fast", "int8", "int8", "bf16"),
    "int4": Precision("fast", "int4", "int4", "bf16", group_size=32),
    "w8a16": Precision("fast", "int8", "int8", "bf16", weight_only=True),
    "w4a16": Precision("fast", "int4", "int4", "bf16", group_size=32, weight_only=True),
}
TOKENS = [(7 * i * i + 3) % 300 for i in range(50)]


def row(token_ids: list[int], start: int, end: int, first_block: int = 0, params: SamplingParams | None = None) -> Row:
    params = params or SamplingParams(temperature=0.0)
    sampling = SampledSequence(token_ids, len(token_ids), params, 0, frozenset(), 300)
    blocks = array("i", range(first_block, first_block + 4))
    return Row(0, TableEntry(token_ids, blocks, sampling), start, end)


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    options = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 300, **SHAPES[request.param]}
    return make_checkpoint(path, request.param, tokenizer=False, **options)


def compiled(decoder: Decoder, kv: WeightFormat = WeightFormat.BF16, isa: str | None = None) -> CompiledModel:
    cache = PagedKV(decoder.config, 8, 16, kv)
    return CompiledModel(decoder, cache, load(isa).new_pool(2), max_tokens=128, max_outputs=64)


def logits(model: StepModel, token_ids: list[int]) -> torch.Tensor:
    """At every position: 30 tokens at once, the rest one by one."""
    model.forward([row(token_ids, 0, 30)], [])
    found = [model.logits(range(30)).clone()]
    for position in range(30, len(token_ids)):
        model.forward([row(token_ids, position, position + 1)], [0])
        found.append(model.logits([0]).clone())
    return torch.cat(found)


@pytest.mark.parametrize("isa", [isa.name for isa in available_isas()])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_the_eager_ones_but_for_rounding(folder: Path, form: str, isa: str) -> None:
    """The decoder computes in floats from the same packed weights; activations in bf16 and int8 round by a percent."""
    decoder = load_model(folder, scheme=PackedScheme(FORMS[form]))
    wanted = logits(EagerModel(decoder, KVTensors.allocate(decoder.config, 8, 16)), TOKENS)
    found = logits(compiled(decoder, isa=isa), TOKENS)
    error = (found - wanted).norm() / wanted.norm()
    assert error < (0.02 if form == "bf16" else 0.05), error
    assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.99


def test_kv_in_8_bits(folder: Path) -> None:
    decoder = load_model(folder, scheme=PackedScheme(FORMS["bf16"]))
    wanted = logits(EagerModel(decoder, KVTensors.allocate(decoder.config, 8, 16)), TOKENS)
    found = logits(compiled(decoder, WeightFormat.INT8), TOKENS)
    assert (found - wanted).norm() / wanted.norm() < 0.05


def test_the_likeliest_tokens_are_those_of_the_logits(folder: Path) -> None:
    model = compiled(load_model(folder, scheme=PackedScheme(FORMS["int8"])))
    model.forward([row(TOKENS, 0, 20), row(TOKENS[:9], 0, 9, 4)], [19, 28])
    chosen = model.choose(None)
    assert list(chosen) == model.logits([19, 28]).argmax(1).tolist()


def test_logits_may_be_written_to_and_asked_for_again(folder: Path) -> None:
    """The sampler scratches in what it is given."""
    model = compiled(load_model(folder, scheme=PackedScheme(FORMS["bf16"])))
    model.forward([row(TOKENS, 0, 20)], [19])
    first = model.logits([19])
    kept = first.clone()
    first.zero_()
    assert torch.equal(model.logits([19]), kept)
    assert torch.equal(model.logits([5, 19])[1], kept[0])


def test_blocks_are_copied_whole(folder: Path) -> None:
    """A sequence goes on from copied blocks as from the first ones."""
    for kv in (WeightFormat.BF16, WeightFormat.INT8):
        model = compiled(load_model(folder, scheme=PackedScheme(FORMS["bf16"])), kv)
        model.forward([row(TOKENS, 0, 40)], [])
        model.forward([row(TOKENS, 40, 41)], [0])
        wanted = model.logits([0]).clone()
        model.copy_blocks([(0, 4), (1, 5), (2, 6)])
        model.poison([0, 1, 2])
        model.forward([row(TOKENS, 40, 41, 4)], [0])
        assert torch.equal(model.logits([0]), wanted)
        model.forward([row(TOKENS, 40, 41)], [0])
        assert model.logits([0]).isnan().all(), "poisoned blocks show"


def test_the_step_grows_with_the_contexts(folder: Path) -> None:
    """Block tables of any length and any number of rows."""
    decoder = load_model(folder, scheme=PackedScheme(FORMS["bf16"]))
    model = compiled(decoder)
    model.forward([row(TOKENS[:3], 0, 3)], [2])
    alone = model.logits([2]).clone()
    crowd = [row(TOKENS[:3], 0, 3, first) for first in (0, 4)]
    model.forward([*crowd, *crowd], [2, 5, 8, 11])
    assert torch.equal(model.logits([2, 5, 8, 11]), alone.expand(4, -1))
