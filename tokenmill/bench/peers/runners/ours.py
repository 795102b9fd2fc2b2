"""Ours: the engine's own loop, as ``LLM`` drives it, with token ids in and token counts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tokenmill.bench.peers.protocol import Events, Prompts, Setup, serve
from tokenmill.core.engine_config import ModelSource
from tokenmill.core.errors import NotSupported
from tokenmill.core.params import SamplingParams
from tokenmill.engine.resolve import resolve
from tokenmill.engine.service import Submission
from tokenmill.llm import LLM

BLOCK_SIZE = 16
STEP_TOKENS = 2048


class Ours:
    packages = ("tokenmill", "torch")

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        """Nothing: the checkpoint is quantised when it is loaded."""

    def load(self, setup: Setup) -> None:
        spare = setup.num_sequences + 1  # each sequence's last block is filled in part
        self._llm = LLM(
            setup.model,
            max_context=setup.context,
            num_threads=setup.threads,
            block_size=BLOCK_SIZE,
            num_blocks=-(-setup.num_tokens // BLOCK_SIZE) + spare,
            prefix_caching=False,
            max_seqs=setup.num_sequences,
            max_step_tokens=max(STEP_TOKENS, setup.num_sequences),
            **_weights(setup.precision),
            **setup.options,
        )
        self._count = 0

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        launched, codec = self._llm.launched, self._llm.codec
        engine = launched.engine
        requests = []
        for prompt, output in zip(prompts, outputs, strict=True):
            params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
            self._count += 1
            name = f"request-{self._count}"
            submission = Submission(tuple(prompt), params)
            requests.append(
                resolve(submission, launched.limits, codec, request_id=name, seed=0, now=engine.clock.now())
            )
        events = Events()
        for request in requests:
            engine.add(request)
        while engine.has_work:
            events.add(sum(len(token_ids) for _, _, token_ids, _, _ in engine.step().tokens))
        return events


def _weights(precision: str) -> dict[str, Any]:
    """The options that choose the class of the weights."""
    if "weights" in {field.name for field in fields(ModelSource)}:
        # "int4" compares 4 bits throughout, as llama.cpp's pure Q4_0 is; our own default keeps 8 in the output layer
        return {"weights": precision, "lm_head": precision}
    if precision == "bf16":
        return {"dtype": "bfloat16"}
    raise NotSupported(f"this version has no option `weights`: it cannot load {precision} weights")


if __name__ == "__main__":
    serve(Ours())
