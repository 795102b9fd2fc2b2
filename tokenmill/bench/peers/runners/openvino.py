"""OpenVINO GenAI: its continuous batching pipeline, stepped by hand, over a model that optimum-intel exported.

"fp16" stores fp16 weights and computes in bf16 where the processor has it. int8 and int4 compress the weights alone;
activations are quantised on the fly. The KV cache is 8-bit in all of them: that is its default.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from subprocess import run
from typing import Any

from tokenmill.bench.peers.protocol import Events, Prompts, Setup, serve

FORMATS = {
    "bf16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"],
}
STEP_TOKENS = 2048


class OpenVino:
    packages = ("openvino", "openvino-genai", "optimum-intel", "nncf", "transformers")

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino", "--model", str(model)]
        command += ["--task", "text-generation-with-past", *FORMATS[precision], str(folder)]
        if run(command, stdout=sys.stderr).returncode != 0:
            raise RuntimeError("optimum-cli could not export the checkpoint")

    def load(self, setup: Setup) -> None:
        self._openvino: Any = import_module("openvino")
        self._numpy: Any = import_module("numpy")
        self._genai: Any = import_module("openvino_genai")
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = 0
        scheduler.cache_size = -(-setup.kv_bytes // 2**30)
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.max_num_seqs = setup.num_sequences
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        options = {
            "INFERENCE_NUM_THREADS": setup.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16",
        }
        self._pipeline = self._genai.ContinuousBatchingPipeline(setup.folder, scheduler, "CPU", options)
        self._count = 0

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        tensors = [self._openvino.Tensor(self._numpy.array([prompt], dtype=self._numpy.int64)) for prompt in prompts]
        events, handles = Events(), []
        for tensor, output in zip(tensors, outputs, strict=True):
            config = self._genai.GenerationConfig(max_new_tokens=output, ignore_eos=True, do_sample=False)
            self._count += 1
            handles.append(self._pipeline.add_request(self._count, tensor, config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            events.add(sum(_new_tokens(handle) for handle in handles if handle.can_read()))
        return events


def _new_tokens(handle: Any) -> int:
    return sum(len(output.generated_ids) for output in handle.read().values())


if __name__ == "__main__":
    serve(OpenVino())
