"""A mixture of experts through every layer, against the ledger and Hugging Face."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenmill import LLM, SamplingParams
from tokenmill.perf import memory
from tokenmill.testing.checkpoints import make_checkpoint


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_mixture_of_experts_is_served_as_the_ledger_foresaw(tmp_path: Path, family: str, kernels: str) -> None:
    """And its greedy answer is Hugging Face's, where the arithmetic is."""
    from transformers import AutoModelForCausalLM

    dense = {"mlp_only_layers": [1]} if family == "qwen3_moe" else {}
    folder = make_checkpoint(tmp_path / family, family, num_layers=3, **dense)
    with LLM(str(folder), num_blocks=64, kernels=kernels, max_step_tokens=64) as llm:
        ledger, measured = llm.launched.checkpoint.ledger, llm.launched.measured
        assert ledger.precision.kernels == kernels
        assert measured.weights_bytes == ledger.group_bytes("weights")
        (answer,) = llm.generate("Once upon a time", SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True))
        model = llm.launched.engine.executor.worker.model
    if kernels == "fast":
        counted = memory.step_buffer_bytes(ledger_config := llm.launched.checkpoint.config) * 64
        logits = model.buffers.max_outputs * 4 * ledger_config.vocab_size
        rows = model.buffers.max_outputs - 64  # of the head's inputs, beyond a step's tokens
        assert rows == 0 and counted <= model.buffers.num_bytes - logits < counted + 256
        return
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([answer.prompt_token_ids])
    out = reference.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None)
    assert answer.choices[0].token_ids == tuple(out[0, prompt.shape[1] :].tolist())
