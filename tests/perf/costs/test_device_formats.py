"""What this engine's GPU kernels hold and multiply in, as the cost model counts it."""

from __future__ import annotations

import pytest

from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import Precision
from tokenmill.perf.costs import device_formats, formats_named, own_formats, served_formats
from tokenmill.perf.device_memory import matrix_bytes
from tokenmill.perf.diagnose import deployment_of
from tokenmill.perf.hardware import find

BF16 = Precision("fast", "bf16", "bf16", "bf16", device="cuda")


def test_integers_are_weight_only_and_fp8_is_multiplied_as_such() -> None:
    int4 = device_formats(Precision("fast", "int4", "bf16", "fp8", weight_only=True, device="cuda"), 128)
    assert (int4.weights.bits, int4.weights.arithmetic) == (4 + 16 / 128, "bf16")
    assert int4.kv.bits == 8 + 32 / 128, "a float32 scale for each position and head"
    assert int4.lm_head.bits == int4.embedding.bits == 16
    fp8 = device_formats(Precision("fast", "fp8", "bf16", "bf16", device="cuda"), 128)
    assert (fp8.weights.bits, fp8.weights.arithmetic) == (8, "fp8")
    assert own_formats(BF16, 128) == device_formats(BF16, 128)


@pytest.mark.parametrize("form", ["bf16", "int8", "int4", "fp8"])
def test_the_cost_model_counts_the_bytes_that_the_ledger_does(form: str) -> None:
    precision = Precision("fast", form, "bf16", "bf16", device="cuda")
    counted = device_formats(precision, 128).weights.num_bytes * 4096 * 4096
    assert counted == pytest.approx(matrix_bytes(4096, 4096, form, 128), rel=2e-3)


def test_a_name_means_what_our_kernels_do_on_that_kind_of_device() -> None:
    gpu = served_formats("int8", None, "tokenmill", 128, "gpu")
    assert gpu.weights.arithmetic == "bf16" and served_formats("w8a16", None, "tokenmill", 128, "gpu") == gpu
    assert served_formats("int8", None, "tokenmill", 128, "cpu").weights.arithmetic == "int8"
    assert served_formats("int8", None, "vllm", 128, "gpu") == formats_named("int8")
    assert served_formats("nvfp4", None, "tokenmill", 128, "gpu") == formats_named("nvfp4")
    assert served_formats("fp8", "fp8", "tokenmill", 128, "gpu").kv.bits == 8.25


def test_a_step_on_a_gpu_is_priced() -> None:
    config = ModelConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 128256, "max_position_embeddings": 8192,
        }
    )  # fmt: skip
    found = deployment_of(config, "8b", BF16, find("H200"))
    assert found.formats.weights.arithmetic == "bf16" and found.hardware.name == "H200-SXM-141GB"
